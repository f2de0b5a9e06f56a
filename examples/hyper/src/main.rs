//! HTTP with hyper for clients that hold a key. One process runs the server and three clients: one that reuses its
//! connection, one with a wrong key, and one that speaks HTTP without a handshake.
//!
//! ```text
//! cargo run -p example-hyper
//! ```

#[macro_use]
#[path = "../../shared/print.rs"]
mod print;
#[path = "../../shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::http::Uri;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tower::{Layer as _, ServiceBuilder};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, Connection, HyperAnswerLayer, Key, KeyEntry, serve,
};

use self::shutdown_signal::shutdown_signal;

type BoxError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let audience = Audience::new("greetings")?;
    let challenge = ChallengeLayer::new(mutual::Server::new(keys, audience.clone()));
    let service = ServiceBuilder::new().layer(challenge).service_fn(serve_http);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let uri: Uri = format!("http://{}/", listener.local_addr()?).parse()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        tokio::select! {
            () = shutdown_signal() => {}
            _ = stopped => {}
        }
    };
    let (errors, mut error) = mpsc::unbounded_channel();
    let server = serve(listener, service)
        .graceful_shutdown(shutdown)
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default());
    let server = tokio::spawn(server.into_future());
    println!("The server listens at {uri}.");

    println!("\nA client with the right key, two requests:");
    let alice = client(mutual::Client::new("alice", &key, audience.clone())?);
    for _ in 0..2 {
        println!("  client: the server says {:?}", get(&alice, &uri).await?);
    }

    println!("\nA client with a wrong key:");
    let wrong = client(mutual::Client::new("alice", &Key::generate()?, audience)?);
    let refused = get(&wrong, &uri).await.expect_err("the server has another key");
    println!("  client: {}", with_sources(&*refused));
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nA client without a handshake:");
    let plain = Client::builder(TokioExecutor::new()).build_http();
    let failed = get(&plain, &uri).await.expect_err("a challenge is not a response");
    println!("  client: {}", with_sources(&*failed));
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    stop.send(()).map_err(|()| "the server has stopped")?;
    let shutdown = server.await??;
    println!("\nThe server has stopped; {} connections had to be aborted.", shutdown.aborted);
    Ok(())
}

/// The inner service: serves the requests of one connection, over HTTP/1 or HTTP/2.
async fn serve_http(stream: Authenticated<Connection<TcpStream>, mutual::Peer>) -> Result<(), BoxError> {
    println!("  server: a connection from {}", stream.get_ref().addr());
    let peer = stream.peer().clone();
    let shutdown = stream.shutdown_token().expect("set by `serve`").clone();
    let respond = service_fn(move |_: Request<Incoming>| {
        let greeting = format!("hello {}", peer.identity().key_id());
        async { Ok::<_, Infallible>(Response::new(greeting)) }
    });

    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        served = connection.as_mut() => return served,
        // Finishes the requests in flight and closes an idle connection.
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Creates a client that reuses its connections: it runs one handshake per connection, not per request.
fn client(mechanism: mutual::Client) -> Client<impl Connect + Clone + use<>, Empty<Bytes>> {
    let connector = HyperAnswerLayer::new(AnswerLayer::new(mechanism)).layer(HttpConnector::new());
    // HTTP/1 connections are reused as well, but may not be back in the pool when the next request follows at once.
    Client::builder(TokioExecutor::new()).http2_only(true).build(connector)
}

async fn get<C>(client: &Client<C, Empty<Bytes>>, uri: &Uri) -> Result<String, BoxError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let body = client.get(uri.clone()).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec())?)
}

/// Formats an error with its sources. hyper-util's errors do not print their cause themselves.
fn with_sources(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
