//! hyper over authenticated streams: a server for each connection within `serve`, and hyper-util's pooling client.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{pending, ready};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::connect::{Connect, HttpConnector, HttpInfo};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Layer as _, ServiceBuilder, ServiceExt as _};
use tower_challenge::one_way::{self, ServerPeer};
use tower_challenge::serve::Shutdown;
use tower_challenge::{
    AnswerLayer, Authenticated, BoxError, ChallengeLayer, ConnectError, Connection, Connector,
    HandshakeError, HandshakeErrorKind, HyperAnswer, HyperAnswerLayer, Identity, serve,
};

use crate::support::{key, ring};
use crate::{process, unauthenticated};

struct Server {
    addr: SocketAddr,
    /// How many connections were authenticated.
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
    let (report, errors) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = serve(listener, service)
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| report.send(error.to_string()).unwrap());
    let running = tokio::spawn(async move { serve.await.unwrap() });
    Server { addr, accepted, errors, stop, running }
}

async fn serve_http(stream: Authenticated<Connection<TcpStream>, Identity>) -> Result<(), BoxError> {
    let greeting = format!("hello {} from {}", stream.peer().key_id(), stream.get_ref().addr());
    let shutdown = stream.shutdown_token().expect("`serve` sets one").clone();
    let respond =
        service_fn(move |_: Request<Incoming>| ready(Ok::<_, Infallible>(Response::new(greeting.clone()))));
    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        served = connection.as_mut() => return served,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Adds the handshake with this key to a connector of hyper-util.
fn answering<S>(connector: S, text: &str) -> HyperAnswer<S, Connector<one_way::Client>> {
    HyperAnswerLayer::new(AnswerLayer::new(one_way::Client::new(&key(text)))).layer(connector)
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

/// The connector never completes a second connection, so that only the pool can serve the second request. Otherwise the
/// client might start to connect just before the first connection is idle again.
#[tokio::test]
async fn pool_reuses_authenticated_connection() {
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
            assert_eq!(response.extensions().get(), Some(&ServerPeer));
            addrs.push(info.local_addr());
        }
        assert_eq!(addrs[0], addrs[1]);
        assert_eq!(server.accepted.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn wrong_key_is_refused_and_found_in_the_client_error() {
    let mut server = server().await;
    let error = get(&client(answering(HttpConnector::new(), "wrong"), false), server.addr).await.unwrap_err();
    assert!(error.is_connect());
    let found = HandshakeError::find_in(&error).expect("the handshake failed");
    assert_eq!(found.kind(), HandshakeErrorKind::Refused);
    let source: Option<&ConnectError> = error.source().unwrap().downcast_ref();
    assert!(matches!(source, Some(ConnectError::Handshake(_))), "{error:?}");
    let report = server.errors.recv().await.unwrap();
    assert!(report.ends_with(": handshake refused: the answer matches none of the keys"), "{report}");
    assert_eq!(server.accepted.load(Ordering::Relaxed), 0);
}

/// An HTTP client without the handshake reads a challenge where it expects a response. The server takes the beginning
/// of the request for a wrong answer.
#[tokio::test]
async fn http_without_handshake_is_not_served() {
    let mut server = server().await;
    for (request, protocol) in
        [(&b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], "HTTP"), (b"PRI * HTTP/2.0\r\n\r\n", "HTTP/2")]
    {
        unauthenticated::assert_refused(server.addr, request).await;
        let error = server.errors.recv().await.unwrap();
        let expected = format!(": handshake refused: the peer speaks {protocol}, this side `one_way`");
        assert!(error.ends_with(&expected), "{error}");
    }

    for http2 in [false, true] {
        get(&client(HttpConnector::new(), http2), server.addr).await.unwrap_err();
        server.errors.recv().await.unwrap();
    }
    assert_eq!(server.accepted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_peers_do_not_delay_others() {
    let server = server().await;
    let _silent = unauthenticated::connect_many_silent(server.addr).await;
    let response = get(&client(answering(HttpConnector::new(), "alice"), false), server.addr).await.unwrap();
    assert!(response.body().starts_with("hello alice from "));
}

#[tokio::test]
async fn graceful_shutdown_ends_idle_connections() {
    for http2 in [false, true] {
        let server = server().await;
        let client = client(answering(HttpConnector::new(), "alice"), http2);
        get(&client, server.addr).await.unwrap();
        server.stop.send(()).unwrap();
        let shutdown = server.running.await.unwrap();
        assert_eq!((shutdown.completed, shutdown.aborted), (1, 0));
    }
}

#[test]
fn example_output() {
    let output = process::run(&mut process::example("example-hyper"), "");
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
