//! hyper over authenticated streams: a server for each connection within `serve`, and hyper-util's pooling client.
#![cfg(all(feature = "hyper-util", feature = "net"))]

#[path = "support/process.rs"]
mod process;
#[path = "support/stranger.rs"]
mod stranger;
mod support;

use std::convert::Infallible;
use std::error::Error;
use std::future::{pending, ready};
use std::io;
use std::iter::successors;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connect, HttpConnector, HttpInfo};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use support::{key, ring};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Service, ServiceBuilder, ServiceExt as _};
use tower_challenge::one_way::{self, UnprovenServer};
use tower_challenge::serve::Shutdown;
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, ConnectError, Connection, HandshakeErrorKind, Identity, serve,
};

struct Server {
    addr: SocketAddr,
    /// How many connections have proven themselves.
    accepted: Arc<AtomicUsize>,
    errors: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Shutdown>,
}

async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(one_way::Server::new(ring(&["alice"]))))
        .service_fn({
            let accepted = Arc::clone(&accepted);
            move |stream| {
                accepted.fetch_add(1, Ordering::Relaxed);
                serve_http(stream)
            }
        });
    let (told, errors) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = serve(listener, service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| told.send(error.to_string()).unwrap());
    let running = tokio::spawn(async move { serve.await.unwrap() });
    Server { addr, accepted, errors, stop, running }
}

async fn serve_http(stream: Authenticated<Connection<TcpStream>, Identity>) -> io::Result<()> {
    let greeting = format!("hello {} from {}", stream.peer().key_id(), stream.get_ref().addr());
    let shutdown = stream.shutdown_token().expect("serve gives one").clone();
    let respond =
        service_fn(move |_: Request<Incoming>| ready(Ok::<_, Infallible>(Response::new(greeting.clone()))));
    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        served = connection.as_mut() => return served.map_err(io::Error::other),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}

type HttpError = <HttpConnector as Service<Uri>>::Error;

/// Connects as `http` does, and answers with this key.
fn answering<S>(http: S, text: &str) -> impl Connect + Clone + Send + Sync + 'static
where
    S: Service<Uri, Response = TokioIo<TcpStream>, Error = HttpError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    ServiceBuilder::new()
        .map_future(Box::pin)
        .map_response(TokioIo::new)
        .layer(AnswerLayer::new(one_way::Client::new(&key(text))))
        .map_response(TokioIo::into_inner)
        .service(http)
}

fn client<C: Connect + Clone>(connector: C, http2: bool) -> Client<C, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build(connector)
}

async fn get<C: Connect + Clone + Send + Sync + 'static>(
    client: &Client<C, Empty<Bytes>>,
    addr: SocketAddr,
) -> Result<Response<String>, ClientError> {
    let response = client.get(format!("http://{addr}/").parse().unwrap()).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Ok(Response::from_parts(head, String::from_utf8(body.to_vec()).unwrap()))
}

/// Whoever asks for a second connection waits for ever, so that only the pool can serve the second request: the client
/// might otherwise begin to connect in the moment before the first connection is free again.
#[tokio::test]
async fn a_connection_is_reused_and_its_handshake_with_it() {
    for http2 in [false, true] {
        let server = server().await;
        let connects = Arc::new(AtomicUsize::new(0));
        let only_one = tower::service_fn(move |uri| {
            let first = connects.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { HttpConnector::new().oneshot(uri).await } else { pending().await } }
        });
        let client = client(answering(only_one, "alice"), http2);
        let mut addrs = Vec::new();
        for _ in 0..2 {
            let response =
                timeout(Duration::from_secs(20), get(&client, server.addr)).await.unwrap().unwrap();
            let info: &HttpInfo = response.extensions().get().unwrap();
            assert_eq!(*response.body(), format!("hello alice from {}", info.local_addr()));
            assert_eq!(response.extensions().get(), Some(&UnprovenServer));
            addrs.push(info.local_addr());
        }
        assert_eq!(addrs[0], addrs[1]);
        assert_eq!(server.accepted.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_the_client_can_tell() {
    let mut server = server().await;
    let error = get(&client(answering(HttpConnector::new(), "wrong"), false), server.addr).await.unwrap_err();
    assert!(error.is_connect());
    let reason = successors(Some(&error as &(dyn Error + 'static)), |&error| error.source())
        .find_map(|error| error.downcast_ref::<ConnectError<HttpError>>());
    let Some(ConnectError::Handshake(reason)) = reason else { panic!("{error:?}") };
    assert_eq!(reason.kind(), HandshakeErrorKind::Refused);
    assert!(server.errors.recv().await.unwrap().ends_with("handshake refused"));
    assert_eq!(server.accepted.load(Ordering::Relaxed), 0);
}

/// What such a client sees is a challenge where it expects a response; what it has sent is taken for an answer.
#[tokio::test]
async fn a_client_without_a_handshake_is_not_served() {
    let mut server = server().await;
    stranger::speaks(server.addr, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(server.errors.recv().await.unwrap().ends_with("handshake refused"));

    for http2 in [false, true] {
        get(&client(HttpConnector::new(), http2), server.addr).await.unwrap_err();
        server.errors.recv().await.unwrap();
    }
    assert_eq!(server.accepted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_strangers_delay_nobody() {
    let server = server().await;
    let _silent = stranger::many_silent(server.addr).await;
    let response = get(&client(answering(HttpConnector::new(), "alice"), false), server.addr).await.unwrap();
    assert!(response.body().starts_with("hello alice from "));
}

#[tokio::test]
async fn a_shutdown_ends_idle_connections() {
    for http2 in [false, true] {
        let server = server().await;
        let client = client(answering(HttpConnector::new(), "alice"), http2);
        get(&client, server.addr).await.unwrap();
        server.stop.send(()).unwrap();
        let shutdown = server.running.await.unwrap();
        assert_eq!((shutdown.completed, shutdown.aborted), (1, 0));
    }
}

#[cfg(feature = "mutual")]
#[test]
fn the_example_succeeds_and_says_so() {
    let output = process::run(&mut process::example("hyper"), "");
    assert!(output.status.success(), "{}", process::stderr(&output));
    let stdout = process::stdout(&output);
    for (part, times) in [
        ("server: a connection from 127.0.0.1:", 1),
        ("the server says \"hello alice\"", 2),
        ("client: client error (Connect): handshake refused", 1),
        ("client: client error (", 2),
        ("The server has stopped; 0 connections", 1),
    ] {
        assert_eq!(stdout.matches(part).count(), times, "{part:?} in {stdout}");
    }
}
