//! A handler whose error type is not an error.

use tokio::net::{TcpListener, TcpStream};
use tower::service_fn;
use tower_challenge::{Connection, serve};

struct Failed;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let service = service_fn(|_: Connection<TcpStream>| async { Err::<(), _>(Failed) });
    serve(TcpListener::bind("127.0.0.1:0").await?, service).await?;
    Ok(())
}
