use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The shared key. With certificates, another key stands for another authority.
pub(crate) type Key = [u8; 32];

/// Both sides of one kind of handshake. The server ends by sending the greeting, the client by receiving it.
pub(crate) trait Way: Clone + 'static {
    fn accept(self, io: TcpStream) -> impl Future<Output = Result<()>> + 'static;
    fn connect(self, io: TcpStream) -> impl Future<Output = Result<()>>;
}

/// The first bytes of the service. A client that has received them is authenticated.
pub(crate) const GREETING: [u8; 1] = *b"!";

pub(crate) async fn greet(mut io: impl AsyncWrite + Unpin) -> Result<()> {
    io.write_all(&GREETING).await?;
    Ok(io.flush().await?)
}

pub(crate) async fn be_greeted(mut io: impl AsyncRead + Unpin) -> Result<()> {
    let mut greeting = [0];
    io.read_exact(&mut greeting).await?;
    if greeting == GREETING { Ok(()) } else { Err("no greeting".into()) }
}

/// Adds a deadline to handshakes that have none of their own.
pub(crate) async fn in_time<T>(handshake: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(Duration::from_secs(10), handshake).await?
}
