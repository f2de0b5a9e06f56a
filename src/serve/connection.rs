use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use crate::transport::{PeerAddr, Transport, TransportInfo};

/// A stream as [`serve`](super::serve) accepted it: with the address that it came from, so that nobody has to ask the
/// kernel again, and with the server's word that it is time to finish.
#[derive(Debug)]
pub struct Connection<IO, A = SocketAddr> {
    io: IO,
    addr: A,
    shutdown: CancellationToken,
    // Given back when it is dropped.
    _place: Option<Place>,
}

impl<IO, A> Connection<IO, A> {
    /// A connection from `addr`, for accept loops of one's own; `shutdown` is cancelled when it is time to finish.
    pub const fn new(io: IO, addr: A, shutdown: CancellationToken) -> Self {
        Self { io, addr, shutdown, _place: None }
    }

    /// It takes this place as long as it is there.
    pub(super) fn at(self, place: Option<Place>) -> Self {
        Self { _place: place, ..self }
    }

    /// Where it came from, as `accept` said.
    pub fn addr(&self) -> &A {
        &self.addr
    }

    /// The stream within.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The stream within.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// The stream within. The place that the connection takes of
    /// [`max_connections`](super::Serve::max_connections) is given back, and a shutdown does not wait for it any more: for
    /// TLS there is no need of this, which can be spoken over the connection as it is.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Cancelled when the server shuts down.
    pub fn shutdown_token(&self) -> &CancellationToken {
        &self.shutdown
    }
}

// Nothing but the stream is ever pinned.
impl<IO: Unpin, A> Unpin for Connection<IO, A> {}

impl<IO: Transport, A: PeerAddr> Transport for Connection<IO, A> {
    fn describe(&self, info: &mut TransportInfo) {
        info.shutdown.get_or_insert_with(|| self.shutdown.clone());
        info.peer_addr = info.peer_addr.or_else(|| self.addr.socket_addr());
        self.io.describe(info);
    }

    fn set_nodelay(&self) -> io::Result<()> {
        self.io.set_nodelay()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncRead + Unpin, A> AsyncRead for Connection<IO, A> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncWrite + Unpin, A> AsyncWrite for Connection<IO, A> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
