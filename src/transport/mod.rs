//! What surrounds a stream: what it can say of itself beyond its bytes.

mod binding;
mod peer_addr;
#[cfg(feature = "rustls")]
mod rustls;

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, BufStream, DuplexStream};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

pub use self::binding::{ChannelBinding, ChannelBindingError};
pub use self::peer_addr::PeerAddr;

/// What is known about a stream, from the stream itself ([`Transport`]) or from a function that looks at it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TransportInfo {
    /// Cancelled when it is time to finish: a handshake that is pending then ends at once, and a session can see it
    /// through [`Authenticated::shutdown_token`](crate::Authenticated::shutdown_token).
    pub shutdown: Option<CancellationToken>,
    /// Where the peer is: its source, as far as [admission](crate::admission) goes. What it says of itself proves nothing, but
    /// over TCP it must at least be able to answer from there.
    pub peer_addr: Option<SocketAddr>,
    /// What channel the stream is, if it can say: a TLS stream can, a socket can't.
    pub channel_binding: Option<ChannelBinding>,
}

impl TransportInfo {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a stream says of itself.
    pub fn of<T: Transport + ?Sized>(stream: &T) -> Self {
        let mut info = Self::new();
        stream.describe(&mut info);
        info
    }

    /// Sets [`shutdown`](Self::shutdown).
    #[must_use]
    pub fn shutdown(mut self, token: CancellationToken) -> Self {
        self.shutdown = Some(token);
        self
    }

    /// Sets [`peer_addr`](Self::peer_addr).
    #[must_use]
    pub fn peer_addr(mut self, addr: SocketAddr) -> Self {
        self.peer_addr = Some(addr);
        self
    }

    /// Sets [`channel_binding`](Self::channel_binding).
    #[must_use]
    pub fn channel_binding(mut self, binding: ChannelBinding) -> Self {
        self.channel_binding = Some(binding);
        self
    }
}

/// A stream that can say what surrounds it.
///
/// Implemented for tokio's own streams and for what this crate wraps around them. For a type of your own that has
/// nothing to say, `impl Transport for MyStream {}` is all; a wrapper should pass the question on. For a type of
/// somebody else's, [`Acceptor::inspect`](crate::Acceptor::inspect) takes a function instead.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what surrounds it",
    label = "not a `Transport`",
    note = "for a type of your own: `impl Transport for {Self} {{}}`",
    note = "for any other: `.inspect(|_io: &{Self}| TransportInfo::new())` on the layer, acceptor or connector"
)]
pub trait Transport {
    /// Adds what this stream knows and is not known yet. Nothing, by default.
    ///
    /// A wrapper adds what it knows itself, then passes the question on: what is nearer to the application counts, and
    /// a socket is not asked for an address that `accept` has told.
    fn describe(&self, _info: &mut TransportInfo) {}

    /// Sets `TCP_NODELAY`, where there is such a thing; `serve` does so for each connection.
    ///
    /// # Errors
    ///
    /// Those of the socket. The connection is unusable then, or nearly so.
    fn set_nodelay(&self) -> io::Result<()> {
        Ok(())
    }
}

/// How a layer learns what surrounds a stream: [`AskStream`], or any function of the stream.
pub trait Inspect<IO> {
    /// What is known about `io`.
    fn inspect(&self, io: &IO) -> TransportInfo;
}

/// The default [`Inspect`]: the stream is a [`Transport`] and says it itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct AskStream;

impl<IO: Transport> Inspect<IO> for AskStream {
    fn inspect(&self, io: &IO) -> TransportInfo {
        TransportInfo::of(io)
    }
}

impl<IO, F: Fn(&IO) -> TransportInfo> Inspect<IO> for F {
    fn inspect(&self, io: &IO) -> TransportInfo {
        self(io)
    }
}

impl Transport for DuplexStream {}

#[cfg(feature = "net")]
impl Transport for tokio::net::TcpStream {
    /// With the peer's address, unless it is gone already.
    fn describe(&self, info: &mut TransportInfo) {
        info.peer_addr = info.peer_addr.or_else(|| self.peer_addr().ok());
    }

    fn set_nodelay(&self) -> io::Result<()> {
        Self::set_nodelay(self, true)
    }
}

#[cfg(all(feature = "net", unix))]
impl Transport for tokio::net::UnixStream {}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn describe(&self, info: &mut TransportInfo) {
        (**self).describe(info);
    }

    fn set_nodelay(&self) -> io::Result<()> {
        (**self).set_nodelay()
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn describe(&self, info: &mut TransportInfo) {
        (**self).describe(info);
    }

    fn set_nodelay(&self) -> io::Result<()> {
        (**self).set_nodelay()
    }
}

impl<T: Transport + AsyncRead + AsyncWrite> Transport for BufStream<T> {
    fn describe(&self, info: &mut TransportInfo) {
        self.get_ref().describe(info);
    }

    fn set_nodelay(&self) -> io::Result<()> {
        self.get_ref().set_nodelay()
    }
}

impl<L: Transport, R: Transport> Transport for Either<L, R> {
    fn describe(&self, info: &mut TransportInfo) {
        match self {
            Self::Left(left) => left.describe(info),
            Self::Right(right) => right.describe(info),
        }
    }

    fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Left(left) => left.set_nodelay(),
            Self::Right(right) => right.set_nodelay(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Knows;

    impl Transport for Knows {
        fn describe(&self, info: &mut TransportInfo) {
            let binding = ChannelBinding::new("kind", "data").expect("a binding");
            *info = std::mem::take(info)
                .channel_binding(binding)
                .shutdown(CancellationToken::new())
                .peer_addr(([192, 0, 2, 1], 7).into());
        }

        fn set_nodelay(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    impl AsyncRead for Knows {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            unreachable!("nobody reads")
        }
    }

    impl AsyncWrite for Knows {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            unreachable!("nobody writes")
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            unreachable!("nobody writes")
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            unreachable!("nobody writes")
        }
    }

    /// A wrapper that forgot would have a handshake bound to nothing.
    #[test]
    fn wrappers_pass_it_on() {
        fn passes(stream: &impl Transport) {
            let info = TransportInfo::of(stream);
            assert_eq!(info.channel_binding.expect("passed on").data(), b"data");
            assert!(info.shutdown.is_some());
            assert_eq!(info.peer_addr, Some(([192, 0, 2, 1], 7).into()));
            assert!(stream.set_nodelay().is_err());
        }
        passes(&&mut Knows);
        passes(&Box::new(Knows));
        passes(&(Box::new(Knows) as Box<dyn Transport>));
        passes(&BufStream::new(Knows));
        passes(&Either::<Knows, DuplexStream>::Left(Knows));
        passes(&Either::<DuplexStream, Knows>::Right(Knows));
        passes(&crate::Authenticated::without_handshake(Knows, ()));
        #[cfg(feature = "net")]
        passes(&crate::Connection::new(Knows, (), CancellationToken::new()));
    }
}
