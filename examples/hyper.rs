//! HTTP with hyper, for clients that hold a key, all in one process: a server, a client that keeps its connections, one
//! with a wrong key, and one that knows HTTP but no handshake.
//!
//! ```text
//! cargo run --features hyper-util --example hyper
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io;
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
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, Connection, Key, KeyEntry, KeyRing, serve,
};

type BoxError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let audience = Audience::new("greetings")?;
    let challenge = ChallengeLayer::new(mutual::Server::new(keys, audience.clone()));
    let service = ServiceBuilder::new().layer(challenge).service_fn(serve_http);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let uri: Uri = format!("http://{}/", listener.local_addr()?).parse()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (errors, mut error) = mpsc::unbounded_channel();
    let server = serve(listener, service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default());
    let server = tokio::spawn(server.into_future());
    println!("A server listens at {uri}.");

    println!("\nA client with the right key, twice:");
    let alice = client(mutual::Client::new("alice", &key, audience.clone())?);
    for _ in 0..2 {
        println!("  client: the server says {:?}", get(&alice, &uri).await?);
    }

    println!("\nA client with a wrong key:");
    let wrong = client(mutual::Client::new("alice", &Key::generate()?, audience)?);
    let refused = get(&wrong, &uri).await.expect_err("the server refuses it");
    println!("  client: {}", chain(&*refused));
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nA client that knows nothing of the handshake:");
    let stranger = Client::builder(TokioExecutor::new()).build_http();
    let unanswered = get(&stranger, &uri).await.expect_err("a challenge is no response");
    println!("  client: {}", chain(&*unanswered));
    println!("  server: {}", error.recv().await.expect("it tells"));

    stop.send(()).expect("the server runs");
    let shutdown = server.await??;
    println!("\nThe server has stopped; {} connections had to be aborted.", shutdown.aborted);
    Ok(())
}

/// The inner service: as many requests as come, over HTTP/1 or HTTP/2.
async fn serve_http(stream: Authenticated<Connection<TcpStream>, mutual::Peer>) -> io::Result<()> {
    println!("  server: a connection from {}", stream.get_ref().addr());
    let peer = stream.peer().clone();
    let shutdown = stream.shutdown_token().expect("serve gives one").clone();
    let respond = service_fn(move |_: Request<Incoming>| {
        let greeting = format!("hello {}", peer.identity().key_id());
        async { Ok::<_, Infallible>(Response::new(greeting)) }
    });

    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        served = connection.as_mut() => return served.map_err(io::Error::other),
        // Responses that are under way are finished; a connection that is idle ends.
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}

/// A client that keeps its connections: a handshake for each connection, not for each request.
fn client(mechanism: mutual::Client) -> Client<impl Connect + Clone + use<>, Empty<Bytes>> {
    let connector = ServiceBuilder::new()
        .map_future(Box::pin) // which the client can move
        .map_response(TokioIo::new)
        .layer(AnswerLayer::new(mechanism))
        .map_response(TokioIo::into_inner)
        .service(HttpConnector::new());
    // Over HTTP/1 it would keep them, too, but a request that follows at once may find none that is free yet.
    Client::builder(TokioExecutor::new()).http2_only(true).build(connector)
}

async fn get<C>(client: &Client<C, Empty<Bytes>>, uri: &Uri) -> Result<String, BoxError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let body = client.get(uri.clone()).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec())?)
}

/// An error with all that lies beneath it.
fn chain(error: &dyn Error) -> String {
    let beneath = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", beneath.unwrap_or_default())
}
