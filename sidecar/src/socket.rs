//! Stream sockets: TCP and Unix.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep};
use tower_challenge::noise::NoiseStream;
use tower_challenge::prepare::{Proxied, ProxyHeader};
use tower_challenge::transport::{PeerAddr, SocketOptions, TransportInfo};
use tower_challenge::{Authenticated, Connection, Transport};

use crate::unsent::unsent;

/// How long [`Socket::sent`] waits for a peer that takes nothing of what was sent to it.
const SENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Sets whether the connection is reset when the socket is dropped, instead of closed. A peer must not take an error
    /// for the end of what was sent.
    ///
    /// Unix sockets cannot be reset.
    pub(crate) fn reset_on_drop(&self, reset: bool) {
        if let Self::Tcp(stream) = self {
            // Fails only for a socket that the peer has reset.
            let _ = SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO));
        }
    }

    /// Waits until the peer has received all that was sent, since a reset discards the rest. Gives up after 10 seconds
    /// in which it has taken nothing.
    pub(crate) async fn sent(&self) {
        let Self::Tcp(stream) = self else { return };
        let (mut left, mut since) = (unsent(stream.as_fd()), Instant::now());
        let mut pause = Duration::from_millis(1);
        while left > 0 && since.elapsed() < SENT_TIMEOUT {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
            let now = unsent(stream.as_fd());
            if now < left {
                (left, since) = (now, Instant::now());
            }
        }
    }

    /// Returns the error of the connection, if there is one that no read or write has returned yet.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        let error = match self {
            Self::Tcp(stream) => stream.take_error(),
            Self::Unix(stream) => stream.take_error(),
        };
        error.ok().flatten()
    }

    /// Waits until an operation may succeed, in the interest of reading or of writing.
    #[cfg(target_os = "linux")]
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        match (self, interest.is_readable()) {
            (Self::Tcp(stream), true) => stream.poll_read_ready(cx),
            (Self::Tcp(stream), false) => stream.poll_write_ready(cx),
            (Self::Unix(stream), true) => stream.poll_read_ready(cx),
            (Self::Unix(stream), false) => stream.poll_write_ready(cx),
        }
    }

    /// Tries an operation on the descriptor. If it would block, the socket is no longer ready.
    #[cfg(target_os = "linux")]
    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, operation),
            Self::Unix(stream) => stream.try_io(interest, operation),
        }
    }

    /// Returns this end's address, if it has an IP address.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Transport for Socket {
    fn describe(&self, info: &mut TransportInfo) {
        match self {
            Self::Tcp(stream) => stream.describe(info),
            Self::Unix(stream) => stream.describe(info),
        }
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_socket_options(options),
            Self::Unix(stream) => stream.set_socket_options(options),
        }
    }
}

/// The address of the peer of an accepted socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// Clients of Unix sockets have no address.
    Unix,
}

impl PeerAddr for Peer {
    fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(*addr),
            Self::Unix => None,
        }
    }

    fn with_socket_addr(self, addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A stream that ends in a [`Socket`].
pub(crate) trait OverSocket {
    /// Whether the end of the stream is authenticated, so that a socket that is merely closed is an error for the peer.
    const HAS_AUTHENTICATED_END: bool = false;

    fn socket(&self) -> &Socket;

    /// Returns whether what is written to this stream is written to its socket as it is.
    fn writes_raw(&self) -> bool;

    /// Returns whether what is read next from this stream is what is read from its socket.
    fn reads_raw(&self) -> bool;

    /// Returns the address that the peer has connected to, if it is known.
    fn destination(&self) -> Option<SocketAddr> {
        self.socket().local_addr()
    }
}

impl OverSocket for Socket {
    fn socket(&self) -> &Socket {
        self
    }

    fn writes_raw(&self) -> bool {
        true
    }

    fn reads_raw(&self) -> bool {
        true
    }
}

impl<A> OverSocket for Connection<Socket, A> {
    fn socket(&self) -> &Socket {
        self.get_ref()
    }

    fn writes_raw(&self) -> bool {
        true
    }

    fn reads_raw(&self) -> bool {
        true
    }
}

impl<IO: OverSocket> OverSocket for Proxied<IO> {
    fn socket(&self) -> &Socket {
        self.get_ref().socket()
    }

    fn writes_raw(&self) -> bool {
        self.get_ref().writes_raw()
    }

    fn reads_raw(&self) -> bool {
        self.read_ahead().is_empty() && self.get_ref().reads_raw()
    }

    fn destination(&self) -> Option<SocketAddr> {
        let destination = self.header().and_then(ProxyHeader::destination);
        destination.or_else(|| self.get_ref().destination())
    }
}

impl<IO: OverSocket> OverSocket for NoiseStream<IO> {
    const HAS_AUTHENTICATED_END: bool = true;

    fn socket(&self) -> &Socket {
        self.get_ref().socket()
    }

    fn writes_raw(&self) -> bool {
        false
    }

    fn reads_raw(&self) -> bool {
        false
    }

    fn destination(&self) -> Option<SocketAddr> {
        self.get_ref().destination()
    }
}

impl<IO: OverSocket, P> OverSocket for Authenticated<IO, P> {
    const HAS_AUTHENTICATED_END: bool = IO::HAS_AUTHENTICATED_END;

    fn socket(&self) -> &Socket {
        self.get_ref().socket()
    }

    fn writes_raw(&self) -> bool {
        self.get_ref().writes_raw()
    }

    fn reads_raw(&self) -> bool {
        self.read_ahead().is_empty() && self.get_ref().reads_raw()
    }

    fn destination(&self) -> Option<SocketAddr> {
        self.get_ref().destination()
    }
}
