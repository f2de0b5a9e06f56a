use std::error::Error;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// One way to make a TCP connection into an encrypted stream.
pub(crate) trait Way: Clone + Send + 'static {
    type Accepted: Stream;
    type Connected: Stream;

    fn accept(self, io: TcpStream) -> impl Future<Output = Result<Self::Accepted>> + 'static;
    fn connect(self, io: TcpStream) -> impl Future<Output = Result<Self::Connected>>;
}

pub(crate) trait Stream: 'static {
    /// Writes all of `data` and flushes it.
    fn send(&mut self, data: &[u8]) -> impl Future<Output = io::Result<()>>;
    /// Reads at least one byte.
    fn receive(&mut self, data: &mut [u8]) -> impl Future<Output = io::Result<usize>>;
}

/// A stream with tokio's traits.
pub(crate) struct Tokio<T>(pub(crate) T);

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Stream for Tokio<T> {
    async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data).await?;
        self.0.flush().await
    }

    async fn receive(&mut self, data: &mut [u8]) -> io::Result<usize> {
        match self.0.read(data).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(len),
        }
    }
}

/// No encryption: the baseline.
#[derive(Clone)]
pub(crate) struct Bare;

impl Way for Bare {
    type Accepted = Tokio<TcpStream>;
    type Connected = Tokio<TcpStream>;

    async fn accept(self, io: TcpStream) -> Result<Self::Accepted> {
        Ok(Tokio(io))
    }

    async fn connect(self, io: TcpStream) -> Result<Self::Connected> {
        Ok(Tokio(io))
    }
}
