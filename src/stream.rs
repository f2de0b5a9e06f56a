//! The authenticated stream.

use std::fmt;
use std::io;
use std::task::Context;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Framed};
use tokio_util::sync::CancellationToken;

use crate::key::Revocation;
use crate::revoked_sessions::Guard;
use crate::transport::{
    ReadAhead, SocketOptions, Transport, TransportInfo, forward_async_read, forward_async_write,
};

/// A stream whose peer has completed the handshake. The inner service is called with it.
///
/// It reads and writes like the inner stream, including vectored writes. Bytes that arrived together with the last
/// message of the handshake are read first, and none is lost. After that a read costs one branch more than a read of
/// the inner stream, and with [`end_revoked_sessions`](crate::Acceptor::end_revoked_sessions) a look at the key's
/// revocation.
///
/// It does not implement `AsRawFd`, since a read from the file descriptor would miss these first bytes. Use
/// [`into_parts`](Self::into_parts) to get both.
///
/// # Unit tests of a handler
///
/// With the feature `test-util`, `without_handshake` creates a stream from any inner stream
/// and any peer. The feature also enables `Identity::new`. Enable it in `[dev-dependencies]`
/// only, since both bypass authentication:
///
/// ```
/// use std::io;
///
/// use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
/// use tower_challenge::{Authenticated, Identity, KeyId};
///
/// async fn greet<IO>(mut stream: Authenticated<IO, Identity>) -> io::Result<()>
/// where
///     IO: AsyncWrite + Unpin,
/// {
///     let greeting = format!("hello {}", stream.peer().key_id());
///     stream.write_all(greeting.as_bytes()).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (mut client, server) = tokio::io::duplex(64);
/// let alice = Identity::new(KeyId::new("alice")?, ());
/// greet(Authenticated::without_handshake(server, alice)).await?;
///
/// let mut greeting = String::new();
/// client.read_to_string(&mut greeting).await?;
/// assert_eq!(greeting, "hello alice");
/// # Ok(())
/// # }
/// ```
pub struct Authenticated<IO, P> {
    io: ReadAhead<IO>,
    peer: P,
    shutdown: Option<CancellationToken>,
    revocation: Option<Revocation>,
    // Set if reads and writes are to fail after the key was revoked.
    guard: Option<Box<Guard>>,
}

/// The parts of an [`Authenticated`] stream, from [`Authenticated::into_parts`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts<IO, P> {
    /// The inner stream. The next bytes read from it follow [`read_ahead`](Self::read_ahead).
    pub io: IO,
    /// Application data that arrived with the handshake and has not been read yet.
    pub read_ahead: BytesMut,
    /// The authenticated peer.
    pub peer: P,
    /// See [`Authenticated::shutdown_token`].
    pub shutdown: Option<CancellationToken>,
    /// See [`Authenticated::revocation`].
    pub revocation: Option<Revocation>,
    /// For [`Authenticated::from_parts`].
    revoked_grace: Option<Duration>,
}

impl<IO, P> Authenticated<IO, P> {
    pub(crate) fn new(
        io: IO,
        read_ahead: BytesMut,
        peer: P,
        shutdown: Option<CancellationToken>,
        revocation: Option<Revocation>,
    ) -> Self {
        Self { io: ReadAhead::new(io, read_ahead), peer, shutdown, revocation, guard: None }
    }

    /// Creates a stream without authentication, for unit tests of handlers. Requires the feature `test-util`.
    #[cfg(feature = "test-util")]
    pub fn without_handshake(io: IO, peer: P) -> Self {
        Self::new(io, BytesMut::new(), peer, None, None)
    }

    /// Returns the authenticated peer: its [`Identity`](crate::Identity), in most mechanisms.
    pub fn peer(&self) -> &P {
        &self.peer
    }

    /// Returns the shutdown token, which is cancelled when the server shuts down. The session should then end by
    /// itself.
    ///
    /// `None` if the transport has no shutdown token. It comes from [`TransportInfo::shutdown`]; `serve` and `Incoming`
    /// set it, to a token of this connection alone.
    pub fn shutdown_token(&self) -> Option<&CancellationToken> {
        self.shutdown.as_ref()
    }

    /// Returns the revocation of the key that the peer has proven to hold.
    ///
    /// `None` if the mechanism's keys cannot be revoked, and on the client's side.
    pub fn revocation(&self) -> Option<&Revocation> {
        self.revocation.as_ref()
    }

    /// Waits until the key of the peer is [revoked](Revocation). Never completes if it cannot be. The future does not
    /// borrow the stream.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + use<IO, P> {
        let revocation = self.revocation.as_ref().map(Revocation::wait);
        async {
            match revocation {
                Some(revoked) => revoked.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Makes reads and writes fail when the key of the peer was revoked and `grace` has passed.
    pub(crate) fn end_when_revoked(&mut self, grace: Duration) {
        self.guard =
            self.revocation.as_ref().map(|revocation| Box::new(Guard::new(revocation.clone(), grace)));
    }

    fn check_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.guard.as_mut().map_or(Ok(()), |guard| guard.check_read(cx))
    }

    fn check_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.guard.as_mut().map_or(Ok(()), |guard| guard.check_write(cx))
    }

    /// Returns the application data that arrived with the handshake and that is read first.
    pub fn read_ahead(&self) -> &[u8] {
        self.io.bytes()
    }

    /// Returns a reference to the inner stream. Reading from it skips the bytes that were read ahead.
    pub fn get_ref(&self) -> &IO {
        &self.io.io
    }

    /// Returns a mutable reference to the inner stream. Reading from it skips the bytes that were read ahead.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io.io
    }

    /// Returns the inner stream, the bytes that were read ahead, the peer, the shutdown token and the revocation.
    ///
    /// [`Acceptor::end_revoked_sessions`](crate::Acceptor::end_revoked_sessions) has no effect on the inner stream. A stream
    /// made by [`from_parts`](Self::from_parts) is ended again.
    pub fn into_parts(self) -> Parts<IO, P> {
        let (io, read_ahead) = self.io.into_parts();
        let revoked_grace = self.guard.map(|guard| guard.grace());
        let Self { peer, shutdown, revocation, .. } = self;
        Parts { io, read_ahead, peer, shutdown, revocation, revoked_grace }
    }

    /// Creates a stream from the parts that [`into_parts`](Self::into_parts) returned.
    pub fn from_parts(parts: Parts<IO, P>) -> Self {
        let mut stream = Self::new(parts.io, parts.read_ahead, parts.peer, parts.shutdown, parts.revocation);
        if let Some(grace) = parts.revoked_grace {
            stream.end_when_revoked(grace);
        }
        stream
    }

    /// Wraps the stream in a [`Framed`]. Buffered bytes are decoded first. The peer is available as
    /// `framed.get_ref().peer()`.
    pub fn into_framed<C: Decoder>(self, codec: C) -> Framed<Self, C>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        Framed::new(self, codec)
    }
}

forward_async_read!([P] Authenticated<IO, P>, check = check_read);
forward_async_write!([P] Authenticated<IO, P>, check = check_write);

// Only the inner stream is ever pinned.
impl<IO: Unpin, P> Unpin for Authenticated<IO, P> {}

impl<IO: Transport, P> Transport for Authenticated<IO, P> {
    fn describe(&self, info: &mut TransportInfo) {
        // The token may not come from the inner stream, e.g. after `from_parts`.
        info.shutdown = info.shutdown.take().or_else(|| self.shutdown.clone());
        self.io.io.describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.io.io.set_socket_options(options)
    }
}

impl<IO: fmt::Debug, P: fmt::Debug> fmt::Debug for Authenticated<IO, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated")
            .field("io", &self.io.io)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::pin::Pin;
    use std::task::Poll;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[cfg(unix)]
    static_assertions::assert_not_impl_any!(
        Authenticated<tokio::io::DuplexStream, ()>: std::os::fd::AsRawFd, std::os::fd::AsFd
    );

    fn read_ahead(bytes: &[u8]) -> (tokio::io::DuplexStream, Authenticated<tokio::io::DuplexStream, ()>) {
        let (far, near) = tokio::io::duplex(64);
        (far, Authenticated::new(near, BytesMut::from(bytes), (), None, None))
    }

    #[tokio::test]
    async fn read_ahead_comes_first() {
        let (mut far, mut near) = read_ahead(b"abc");
        far.write_all(b"defg").await.unwrap();
        drop(far);
        let mut two = [0; 2];
        near.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let mut rest = String::new();
        near.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdefg");
        assert_eq!(near.into_parts().read_ahead.capacity(), 0, "the buffer is freed");
    }

    #[tokio::test]
    async fn into_framed_decodes_read_ahead_without_io() {
        use futures::StreamExt as _;

        let (_far, near) = read_ahead(b"one\ntwo\nthr");
        let mut lines = near.into_framed(tokio_util::codec::LinesCodec::new());
        assert_eq!(lines.next().await.unwrap().unwrap(), "one");
        assert_eq!(lines.next().await.unwrap().unwrap(), "two");
    }

    /// Panics if a non-vectored write is used.
    struct OnlyVectored;

    impl AsyncWrite for OnlyVectored {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            panic!("not vectored")
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn vectored_writes_stay_vectored() {
        let mut stream = Authenticated::without_handshake(OnlyVectored, ());
        assert!(stream.is_write_vectored());
        let written = stream.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"c")]).await.unwrap();
        assert_eq!(written, 3);
    }
}
