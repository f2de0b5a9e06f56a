//! An axum router for clients that hold a key, all in one process: a server, a client with the right key, one with a
//! wrong key, and one that knows HTTP but no handshake.
//!
//! ```text
//! cargo run --features axum --example axum
//! ```

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
use tower_challenge::{
    ChallengeLayer, Connector, HandshakeErrorKind, Incoming, Key, KeyEntry, KeyRing, PeerInfo,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// What handlers know of their connection.
type Peer = PeerInfo<mutual::Peer<&'static str>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?.attach("Alice from accounting")])?;
    let audience = Audience::new("greetings")?;
    let layer = ChallengeLayer::new(mutual::Server::new(keys, audience.clone()));

    let (errors, mut error) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await?, layer)
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default())
        .start()?;
    let addr = *incoming.local_addr();
    let app = Router::new().route("/", get(greet)).into_make_service_with_connect_info::<Peer>();
    tokio::spawn(axum::serve(incoming, app).into_future());
    println!("A server listens on {addr}.");

    println!("\nA client with the right key:");
    let connector = Connector::new(mutual::Client::new("alice", &key, audience.clone())?);
    println!("  client: the server says {:?}", request(addr, &connector).await?);

    println!("\nA client with a wrong key:");
    let wrong = Connector::new(mutual::Client::new("alice", &Key::generate()?, audience)?);
    match wrong.connect(TcpStream::connect(addr).await?).await {
        Err(error) if error.kind() == HandshakeErrorKind::Refused => println!("  client: {error}"),
        other => return Err(format!("expected to be refused, got {other:?}").into()),
    }
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nA client that knows nothing of the handshake:");
    let mut stranger = TcpStream::connect(addr).await?;
    stranger.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut challenge = Vec::new();
    stranger.read_to_end(&mut challenge).await?;
    println!("  client: got {} bytes of challenge, then the server closed", challenge.len());
    println!("  server: {}", error.recv().await.expect("it tells"));
    Ok(())
}

/// A handler like any other.
async fn greet(Peer { peer, addr, .. }: Peer) -> String {
    println!("  server: {} asks from {addr}", peer.identity().attached());
    format!("hello {}", peer.identity().key_id())
}

/// One request on a connection of its own; `examples/hyper.rs` has a client that keeps connections.
async fn request(addr: SocketAddr, connector: &Connector<mutual::Client>) -> Result<String, BoxError> {
    let stream = connector.connect(TcpStream::connect(addr).await?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/").header(header::HOST, "localhost").body(Body::empty())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec())?)
}
