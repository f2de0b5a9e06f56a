//! The stream behind a handshake.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::codec::{Decoder, Framed};
use tokio_util::sync::CancellationToken;

use crate::transport::{Transport, TransportInfo};

/// A stream whose peer has proven something: what an inner service is called with.
///
/// It reads and writes like the stream within, vectored writes included. Bytes that arrived together with the last
/// message of the handshake are read first; none is lost. After that a read costs one branch more than the bare
/// stream's.
///
/// It has no file descriptor of its own (no `AsRawFd`), since whoever read from that would miss those first bytes:
/// [`into_parts`](Self::into_parts) gives both.
///
/// # In the unit tests of a handler
///
/// [`without_handshake`](Self::without_handshake) makes one of any stream and any peer:
///
/// ```
/// use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
/// use tower_challenge::{Authenticated, Identity, KeyId};
///
/// async fn greet<IO: AsyncRead + AsyncWrite + Unpin>(mut stream: Authenticated<IO, Identity>) -> std::io::Result<()> {
///     let greeting = format!("hello {}", stream.peer().key_id());
///     stream.write_all(greeting.as_bytes()).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (mut client, server) = tokio::io::duplex(64);
/// greet(Authenticated::without_handshake(server, Identity::new(KeyId::new("alice")?, ()))).await?;
/// let mut greeting = String::new();
/// client.read_to_string(&mut greeting).await?;
/// assert_eq!(greeting, "hello alice");
/// # Ok(())
/// # }
/// ```
pub struct Authenticated<IO, P> {
    io: IO,
    // Without memory of its own once it has been read.
    read_ahead: BytesMut,
    peer: P,
    shutdown: Option<CancellationToken>,
}

/// What an [`Authenticated`] stream is made of.
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts<IO, P> {
    /// The stream. What it reads next comes behind [`read_ahead`](Self::read_ahead).
    pub io: IO,
    /// Bytes of the application that arrived with the handshake and have not been read yet.
    pub read_ahead: BytesMut,
    /// What the peer has proven.
    pub peer: P,
    /// See [`Authenticated::shutdown_token`].
    pub shutdown: Option<CancellationToken>,
}

impl<IO, P> Authenticated<IO, P> {
    pub(crate) fn new(io: IO, read_ahead: BytesMut, peer: P, shutdown: Option<CancellationToken>) -> Self {
        let read_ahead = if read_ahead.is_empty() { BytesMut::new() } else { read_ahead };
        Self { io, read_ahead, peer, shutdown }
    }

    /// A stream that nobody has authenticated, for the unit tests of handlers.
    pub fn without_handshake(io: IO, peer: P) -> Self {
        Self::new(io, BytesMut::new(), peer, None)
    }

    /// What the peer has proven: who it is, in most mechanisms.
    pub fn peer(&self) -> &P {
        &self.peer
    }

    /// Cancelled when the server shuts down and the session should come to an end by itself. `None` where nobody said
    /// how that would be known: it comes from [`TransportInfo::shutdown`], and `serve` sets it.
    pub fn shutdown_token(&self) -> Option<&CancellationToken> {
        self.shutdown.as_ref()
    }

    /// The stream within. Reading from it skips what has been read ahead.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The stream within. Reading from it skips what has been read ahead.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Takes it apart: the stream, the bytes that were read ahead, and the peer.
    pub fn into_parts(self) -> Parts<IO, P> {
        Parts { io: self.io, read_ahead: self.read_ahead, peer: self.peer, shutdown: self.shutdown }
    }

    /// Puts it together again, with nothing lost.
    pub fn from_parts(parts: Parts<IO, P>) -> Self {
        Self::new(parts.io, parts.read_ahead, parts.peer, parts.shutdown)
    }

    /// Goes on in messages of `codec`, those that have arrived already first. The peer stays within reach:
    /// `framed.get_ref().peer()`.
    pub fn into_framed<C: Decoder>(self, codec: C) -> Framed<Self, C>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        Framed::new(self, codec)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncRead + Unpin, P> AsyncRead for Authenticated<IO, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read_ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.read_ahead.len().min(buf.remaining());
        buf.put_slice(&self.read_ahead[..len]);
        self.read_ahead.advance(len);
        if self.read_ahead.is_empty() {
            self.read_ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncWrite + Unpin, P> AsyncWrite for Authenticated<IO, P> {
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

// Nothing but the stream is ever pinned.
impl<IO: Unpin, P> Unpin for Authenticated<IO, P> {}

impl<IO: Transport, P> Transport for Authenticated<IO, P> {
    fn describe(&self, info: &mut TransportInfo) {
        // It may have come from elsewhere than the stream.
        info.shutdown = info.shutdown.take().or_else(|| self.shutdown.clone());
        self.io.describe(info);
    }

    fn set_nodelay(&self) -> io::Result<()> {
        self.io.set_nodelay()
    }
}

impl<IO: fmt::Debug, P: fmt::Debug> fmt::Debug for Authenticated<IO, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated")
            .field("io", &self.io)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    static_assertions::assert_not_impl_any!(
        Authenticated<tokio::io::DuplexStream, ()>: std::os::fd::AsRawFd, std::os::fd::AsFd
    );

    fn read_ahead(bytes: &[u8]) -> (tokio::io::DuplexStream, Authenticated<tokio::io::DuplexStream, ()>) {
        let (far, near) = tokio::io::duplex(64);
        (far, Authenticated::new(near, BytesMut::from(bytes), (), None))
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first_in_whatever_portions() {
        let (mut far, mut near) = read_ahead(b"abc");
        far.write_all(b"defg").await.unwrap();
        drop(far);
        let mut two = [0; 2];
        near.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let mut rest = String::new();
        near.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdefg");
        assert_eq!(near.into_parts().read_ahead.capacity(), 0, "its memory is given back");
    }

    #[tokio::test]
    async fn a_frame_that_was_read_ahead_is_decoded_without_another_read() {
        use futures::StreamExt as _;

        let (_far, near) = read_ahead(b"one\ntwo\nthr");
        let mut lines = near.into_framed(tokio_util::codec::LinesCodec::new());
        assert_eq!(lines.next().await.unwrap().unwrap(), "one");
        assert_eq!(lines.next().await.unwrap().unwrap(), "two");
    }

    /// Panics when written to other than vectored.
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
