use std::io;
use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use super::permits::Permit;
use crate::transport::{
    PeerAddr, SocketOptions, Transport, TransportInfo, forward_async_read, forward_async_write,
};

/// A stream as [`serve`](super::serve) accepted it, with the peer's address and the server's shutdown signal.
#[derive(Debug)]
pub struct Connection<IO, A = SocketAddr> {
    io: IO,
    addr: A,
    shutdown: CancellationToken,
    // Released on drop.
    _permit: Option<Permit>,
}

impl<IO, A> Connection<IO, A> {
    /// Creates a connection from `addr`, for accept loops of your own. Cancel `shutdown` to shut down.
    pub fn new(io: IO, addr: A, shutdown: &CancellationToken) -> Self {
        // A child, so that one session cannot shut down the others.
        Self { io, addr, shutdown: shutdown.child_token(), _permit: None }
    }

    /// Holds `permit` until the connection is dropped.
    pub(super) fn with_permit(self, permit: Option<Permit>) -> Self {
        Self { _permit: permit, ..self }
    }

    /// Returns the peer's address, as `accept` returned it.
    pub fn addr(&self) -> &A {
        &self.addr
    }

    /// Returns a reference to the stream.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Returns a mutable reference to the stream.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Returns the stream. It no longer counts towards [`max_connections`](super::Serve::max_connections), and a shutdown
    /// does not wait for it. TLS does not need this: it works on a `Connection`.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Returns a token that is cancelled when the server shuts down. Cancelling the token itself affects no other
    /// connection.
    pub fn shutdown_token(&self) -> &CancellationToken {
        &self.shutdown
    }
}

// Only the stream is ever pinned.
impl<IO: Unpin, A> Unpin for Connection<IO, A> {}

impl<IO: Transport, A: PeerAddr> Transport for Connection<IO, A> {
    fn describe(&self, info: &mut TransportInfo) {
        info.shutdown.get_or_insert_with(|| self.shutdown.clone());
        info.peer_addr = info.peer_addr.or_else(|| self.addr.socket_addr());
        self.io.describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.io.set_socket_options(options)
    }
}

forward_async_read!([A] Connection<IO, A>);
forward_async_write!([A] Connection<IO, A>);
