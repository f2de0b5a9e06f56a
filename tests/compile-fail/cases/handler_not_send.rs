//! A handler that holds an `Rc` across an await cannot run in a task.

use std::rc::Rc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Authenticated, ChallengeLayer, Connection, KeyFile, serve};

async fn handler(
    mut stream: Authenticated<Connection<TcpStream>, mutual::Peer>,
) -> std::io::Result<()> {
    let greeting = Rc::new("hello");
    stream.write_all(greeting.as_bytes()).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys = mutual::KeyRing::new(KeyFile::new("keys").read()?)?;
    let server = mutual::Server::new(keys, Audience::new("orders")?);
    let service = ServiceBuilder::new().layer(ChallengeLayer::new(server)).service_fn(handler);
    serve(TcpListener::bind("127.0.0.1:0").await?, service).await?;
    Ok(())
}
