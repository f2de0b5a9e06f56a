//! Transport metadata: the peer's address, the channel binding and the shutdown signal of a stream.
//!
//! A handshake needs more than the bytes of its stream. [`Transport`] is how a stream reports the rest: tokio's streams
//! and the wrappers of this crate implement it, and for a type of your own that has nothing to report,
//! `impl Transport for MyStream {}` is enough. [`WithInfo`] adds metadata to any other stream.

mod binding;
mod forward;
mod peer_addr;
mod read_ahead;
#[cfg(feature = "rustls")]
mod rustls;
mod socket_options;
mod with_info;

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, BufStream, DuplexStream};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

pub use self::binding::{ChannelBinding, ChannelBindingError};
pub(crate) use self::forward::{forward_async_read, forward_async_write};
pub use self::peer_addr::PeerAddr;
pub(crate) use self::read_ahead::ReadAhead;
pub use self::socket_options::SocketOptions;
pub use self::with_info::WithInfo;

/// What is known about a stream beyond its bytes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TransportInfo {
    /// Cancelled when the server shuts down. An in-flight handshake then ends at once, and a session can observe it
    /// through [`Authenticated::shutdown_token`](crate::Authenticated::shutdown_token).
    pub shutdown: Option<CancellationToken>,
    /// The peer's address, which [admission control](crate::admission) uses as its source. It proves nothing, but a
    /// TCP peer must at least be able to receive packets there.
    pub peer_addr: Option<SocketAddr>,
    /// The identity of the channel, which TLS streams have and plain sockets do not.
    pub channel_binding: Option<ChannelBinding>,
}

impl TransportInfo {
    /// Creates an empty `TransportInfo`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a `TransportInfo` with what `stream` reports.
    pub fn from_stream<T: Transport + ?Sized>(stream: &T) -> Self {
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

/// A stream that reports its transport metadata.
///
/// Implemented for tokio's streams and for the wrappers of this crate. A wrapper of your own should report what it
/// knows and then forward to the stream within, as the default methods report nothing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `Transport`",
    label = "this stream does not report transport metadata",
    note = "if the type is yours: implement `Transport`; if it wraps another stream, forward `describe` to that",
    note = "if not: wrap it in `tower_challenge::transport::WithInfo`, with what is known about the peer"
)]
pub trait Transport {
    /// Adds to `info` what this stream knows and what is not known yet. The default adds nothing.
    ///
    /// A wrapper adds what it knows and then calls the stream within. In this way the outermost value counts, and a
    /// socket is not asked for an address that `accept` has returned already.
    fn describe(&self, _info: &mut TransportInfo) {}

    /// Sets options of the socket, if the stream has one. `serve` does so for each connection. The default does nothing.
    ///
    /// # Errors
    ///
    /// Returns the error of the socket.
    fn set_socket_options(&self, _options: &SocketOptions) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for DuplexStream {}

#[cfg(feature = "net")]
impl Transport for tokio::net::TcpStream {
    /// With the peer's address, unless it is gone already.
    fn describe(&self, info: &mut TransportInfo) {
        info.peer_addr = info.peer_addr.or_else(|| self.peer_addr().ok());
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        options.apply(self)
    }
}

#[cfg(all(feature = "net", unix))]
impl Transport for tokio::net::UnixStream {}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn describe(&self, info: &mut TransportInfo) {
        (**self).describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        (**self).set_socket_options(options)
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn describe(&self, info: &mut TransportInfo) {
        (**self).describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        (**self).set_socket_options(options)
    }
}

impl<T: Transport + AsyncRead + AsyncWrite> Transport for BufStream<T> {
    fn describe(&self, info: &mut TransportInfo) {
        self.get_ref().describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.get_ref().set_socket_options(options)
    }
}

impl<L: Transport, R: Transport> Transport for Either<L, R> {
    fn describe(&self, info: &mut TransportInfo) {
        match self {
            Self::Left(left) => left.describe(info),
            Self::Right(right) => right.describe(info),
        }
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        match self {
            Self::Left(left) => left.set_socket_options(options),
            Self::Right(right) => right.set_socket_options(options),
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

        fn set_socket_options(&self, _: &SocketOptions) -> io::Result<()> {
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
            let info = TransportInfo::from_stream(stream);
            assert_eq!(info.channel_binding.expect("passed on").data(), b"data");
            assert!(info.shutdown.is_some());
            assert_eq!(info.peer_addr, Some(([192, 0, 2, 1], 7).into()));
            assert!(stream.set_socket_options(&SocketOptions::new()).is_err());
        }
        passes(&&mut Knows);
        passes(&Box::new(Knows));
        passes(&(Box::new(Knows) as Box<dyn Transport>));
        passes(&BufStream::new(Knows));
        passes(&Either::<Knows, DuplexStream>::Left(Knows));
        passes(&Either::<DuplexStream, Knows>::Right(Knows));
        passes(&crate::Authenticated::without_handshake(Knows, ()));
        let info = TransportInfo::from_stream(&WithInfo::new((), TransportInfo::from_stream(&Knows)));
        assert!(info.channel_binding.is_some() && info.shutdown.is_some() && info.peer_addr.is_some());
        #[cfg(feature = "net")]
        passes(&crate::Connection::new(Knows, (), &CancellationToken::new()));
    }
}
