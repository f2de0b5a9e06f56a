//! An axum router for clients that hold a key. One process runs the server and three clients: one with the right key, one
//! with a wrong key, and one that speaks HTTP without a handshake.
//!
//! ```text
//! cargo run -p example-axum
//! ```

#[macro_use]
#[path = "../../shared/print.rs"]
mod print;
#[path = "../../shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::error::Error;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{ChallengeLayer, Connector, HandshakeErrorKind, Incoming, Key, KeyEntry, PeerInfo};

use self::shutdown_signal::shutdown_signal;

type BoxError = Box<dyn Error + Send + Sync>;

/// What a handler can extract about its connection. The type parameter of `Peer` is that of the keys' metadata.
type Peer = PeerInfo<mutual::Peer<&'static str>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys =
        mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?.with_metadata("Alice from accounting")])?;
    let audience = Audience::new("greetings")?;
    let layer = ChallengeLayer::new(mutual::Server::new(keys, audience.clone()));

    let (errors, mut error) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await?, layer)
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default())
        .start()?;
    let addr = *incoming.local_addr();
    let app = Router::new().route("/", get(greet)).into_make_service_with_connect_info::<Peer>();
    // axum gets the signal, not `incoming`: it finishes its requests and then drops `incoming`.
    let server = axum::serve(incoming, app).with_graceful_shutdown(shutdown_signal());
    tokio::spawn(server.into_future());
    println!("The server listens on {addr}.");

    println!("\nA client with the right key:");
    let connector = Connector::new(mutual::Client::new("alice", &key, audience.clone())?);
    println!("  client: the server says {:?}", request(addr, &connector).await?);

    println!("\nA client with a wrong key:");
    let wrong = Connector::new(mutual::Client::new("alice", &Key::generate()?, audience)?);
    match wrong.connect(TcpStream::connect(addr).await?).await {
        Err(error) if error.kind() == HandshakeErrorKind::Refused => println!("  client: {error}"),
        other => return Err(format!("expected to be refused, got {other:?}").into()),
    }
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nA client without a handshake:");
    let mut plain = TcpStream::connect(addr).await?;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut challenge = Vec::new();
    plain.read_to_end(&mut challenge).await?;
    println!("  client: got {} bytes of challenge, then the server closed", challenge.len());
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);
    Ok(())
}

/// An ordinary handler.
async fn greet(Peer { peer, addr, .. }: Peer) -> String {
    println!("  server: {} asks from {addr}", peer.identity().metadata());
    format!("hello {}", peer.identity().key_id())
}

/// Sends one request on a new connection. The hyper example has a client that reuses connections.
async fn request(addr: SocketAddr, connector: &Connector<mutual::Client>) -> Result<String, BoxError> {
    let stream = connector.connect(TcpStream::connect(addr).await?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/").header(header::HOST, "localhost").body(Body::empty())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec())?)
}
