//! A server and three clients in one process: one has the right key, one has a wrong key, and one sends nothing.
//!
//! ```text
//! cargo run --example quickstart
//! ```

#[macro_use]
#[path = "shared/print.rs"]
mod print;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, ConnectError, Connection, HandshakeErrorKind, Key, KeyEntry,
    serve,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The server: a key ring, a handshake, and a service that is called only for peers that hold one of the keys.
    let key = Key::generate()?;
    let keys =
        mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?.with_metadata("Alice from accounting")])?;
    let audience = Audience::new("quickstart")?;
    let mechanism = mutual::Server::new(keys, audience.clone());
    let challenge = ChallengeLayer::new(mechanism).timeout(Duration::from_millis(500));
    let service = ServiceBuilder::new().layer(challenge).service_fn(handler);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (errors, mut error) = mpsc::unbounded_channel();
    let server = serve(listener, service)
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default());
    let server = tokio::spawn(server.into_future());
    println!("The server listens on {addr}.");

    println!("\nA client with the right key:");
    let mut stream = connect(addr, mutual::Client::new("alice", &key, audience.clone())?).await?;
    stream.write_all(b"how are you?").await?;
    stream.shutdown().await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    println!("  client: the server says {reply:?}");

    println!("\nA client with a wrong key:");
    match connect(addr, mutual::Client::new("alice", &Key::generate()?, audience)?).await {
        Err(ConnectError::Handshake(error)) if error.kind() == HandshakeErrorKind::Refused => {
            println!("  client: {error}");
        }
        other => return Err(format!("expected to be refused, got {other:?}").into()),
    }
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nA client that sends nothing:");
    let mut silent = TcpStream::connect(addr).await?;
    let mut challenge = Vec::new();
    silent.read_to_end(&mut challenge).await?;
    println!("  client: got {} bytes of challenge, then the server closed", challenge.len());
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    stop.send(()).map_err(|()| "the server has stopped")?;
    let shutdown = server.await??;
    println!("\nThe server has stopped; {} connections had to be aborted.", shutdown.aborted);
    Ok(())
}

/// The inner service.
async fn handler(
    mut stream: Authenticated<Connection<TcpStream>, mutual::Peer<&'static str>>,
) -> io::Result<()> {
    let mut question = String::new();
    stream.read_to_string(&mut question).await?;
    println!("  server: {} asks {question:?}", stream.peer().identity().metadata());
    stream.write_all(b"fine, thank you").await
}

async fn connect(
    addr: SocketAddr,
    mechanism: mutual::Client,
) -> Result<Authenticated<TcpStream, mutual::ServerPeer>, ConnectError> {
    let connector =
        ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(TcpStream::connect::<SocketAddr>);
    connector.oneshot(addr).await
}
