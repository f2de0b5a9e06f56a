use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::PREFIX_LEN;
use super::incoming::Incoming;
use super::record::{CLOSE, DATA, MIN_SEALED_LEN, Opener, Sealer};
use super::symmetric::Hash;
use crate::transport::{ChannelBinding, SocketOptions, Transport, TransportInfo};

/// An encrypted stream, as the handshake of this mechanism leaves it.
///
/// # Closing
///
/// **Call [`shutdown`](tokio::io::AsyncWriteExt::shutdown) when you have sent everything.** Only that sends the
/// authenticated CLOSE, and the peer reads the end of the stream. If the stream is dropped instead, or after an error, the
/// peer's reads fail with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), as they do if the connection is cut by someone
/// on the path: the peer cannot tell the two apart.
///
/// Each direction is closed on its own. A CLOSE from the peer ends reading at once; writing continues.
///
/// # Errors
///
/// A record that does not open, or that the protocol does not allow, makes all further reads and writes fail: nothing is
/// ever skipped. So do an end without a CLOSE and an error of the transport's reads.
///
/// An error of the transport's writes, flushes or shutdown ends writing only: what the peer sent before can still be read.
/// All further writes, flushes and shutdowns fail with an error of the same kind, also if a read noticed the error.
///
/// # Reading and writing
///
/// A write seals at most 16 KiB into one record, keeps it until the transport has taken it, and returns how many bytes of
/// *this* buffer it took. The record is sent by further writes, by `flush`, by `shutdown` and by reads, which also flush
/// the transport: writing and then reading makes progress without a flush, but flush before you wait for anything else. A
/// read that waits already, in another task, sends what a write left; only a transport that buffers must then be flushed.
/// Vectored writes are gathered into one record.
///
/// Reads and writes are cancel safe, and the halves of a split stream can be in different tasks. While the stream is idle
/// it holds no buffer.
pub struct NoiseStream<IO> {
    io: IO,
    sealer: Sealer,
    opener: Opener,
    // Sealed records that the transport has not taken yet.
    outgoing: BytesMut,
    // Whether the transport has taken bytes since it was flushed.
    unflushed: bool,
    // Sealed records, and the data of an opened one at the beginning.
    incoming: Incoming,
    // How many bytes at the beginning of `incoming` are data.
    opened: usize,
    // How many bytes of a tag follow the data.
    skip: usize,
    read_state: State,
    write_state: State,
    waiting: Waiting,
    hash: Hash,
    accept_unauthenticated_end: bool,
}

/// The state of one direction.
enum State {
    Open,
    /// CLOSE was received, or sealed.
    Closed,
    Failed(Box<Failure>),
}

impl State {
    fn check(&mut self) -> io::Result<()> {
        match self {
            Self::Failed(failure) => Err(failure.report()),
            Self::Open | Self::Closed => Ok(()),
        }
    }
}

/// The error that has ended a direction.
struct Failure {
    // The error itself, until it is reported.
    unreported: Option<io::Error>,
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    fn new(error: io::Error) -> Self {
        Self { kind: error.kind(), text: error.to_string(), unreported: Some(error) }
    }

    fn report(&mut self) -> io::Error {
        self.unreported.take().unwrap_or_else(|| {
            io::Error::new(self.kind, format!("the stream has failed before: {}", self.text))
        })
    }
}

/// The tasks whose last poll of a direction returned `Pending`.
///
/// A reader sends, too. The transport wakes only the task that polled its writing side last, which need not be the task
/// that waits for it. So it is polled with a waker for both.
#[derive(Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy)]
enum Side {
    Reader,
    Writer,
}

impl Waiting {
    /// Records whether `side` waits after a poll.
    fn record(&mut self, side: Side, cx: &Context<'_>, is_pending: bool) {
        let own = match side {
            Side::Reader => &mut self.reader,
            Side::Writer => &mut self.writer,
        };
        match own {
            _ if !is_pending => *own = None,
            Some(waker) => waker.clone_from(cx.waker()),
            None => *own = Some(cx.waker().clone()),
        }
    }

    /// Returns a waker for `own` and for the other side, if that is another task that waits.
    fn with_other(&self, side: Side, own: &Waker) -> Option<Waker> {
        let other = match side {
            Side::Reader => &self.writer,
            Side::Writer => &self.reader,
        };
        let other = other.as_ref().filter(|other| !other.will_wake(own))?;
        Some(Arc::new(Both(own.clone(), other.clone())).into())
    }

    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

struct Both(Waker, Waker);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake_by_ref();
        self.1.wake_by_ref();
    }
}

fn bad_record() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "a record does not open: it was changed, dropped, repeated or reordered on the way",
    )
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the connection ended without a CLOSE: it was cut, or the peer did not shut the stream down",
    )
}

impl<IO> NoiseStream<IO> {
    pub(super) fn new(
        io: IO,
        (sealer, opener): (Sealer, Opener),
        hash: Hash,
        read_ahead: &[u8],
        accept_unauthenticated_end: bool,
    ) -> Self {
        Self {
            io,
            sealer,
            opener,
            outgoing: BytesMut::new(),
            unflushed: false,
            incoming: Incoming::new(read_ahead),
            opened: 0,
            skip: 0,
            read_state: State::Open,
            write_state: State::Open,
            waiting: Waiting::default(),
            hash,
            accept_unauthenticated_end,
        }
    }

    /// Returns a reference to the transport, for its address and the like.
    ///
    /// **Neither write to it nor read from it.** A shared reference is enough for that with some transports, such as
    /// [`TcpStream::try_write`](tokio::net::TcpStream::try_write): what is written goes over the wire in clear text, and
    /// the peer's stream fails. What is read is encrypted, and lost to this stream.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Ends both directions, and returns the error for the reader.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let failed = || {
            let (kind, text) = (error.kind(), error.to_string());
            State::Failed(Box::new(Failure { unreported: None, kind, text }))
        };
        self.read_state = failed();
        if !matches!(self.write_state, State::Failed(_)) {
            self.end_writing(failed());
        }
        self.incoming = Incoming::default();
        (self.opened, self.skip) = (0, 0);
        self.waiting.wake_writer();
        error
    }

    fn fail_writing(&mut self, error: io::Error) {
        self.end_writing(State::Failed(Box::new(Failure::new(error))));
    }

    /// Nothing is sent any more, a CLOSE least of all.
    fn end_writing(&mut self, failed: State) {
        self.write_state = failed;
        self.outgoing = BytesMut::new();
        self.unflushed = false;
    }

    /// Opens the next record in `incoming`, if all of it is there. Returns whether it changed anything.
    fn open_next(&mut self) -> io::Result<bool> {
        let Some(len) = self.incoming.sealed_len() else { return Ok(false) };
        if len < MIN_SEALED_LEN {
            return Err(self.fail(bad_record()));
        }
        let Some(sealed) = self.incoming.bytes_mut().get_mut(PREFIX_LEN..PREFIX_LEN + len) else {
            return Ok(false);
        };
        match self.opener.open(sealed) {
            Ok((DATA, data)) => {
                // The length and the type are in front of the data, the tag is behind it.
                self.incoming.advance(PREFIX_LEN + 1);
                self.opened = data;
                self.skip = len - 1 - data;
                self.release_opened();
                Ok(true)
            }
            Ok((CLOSE, _)) => {
                // Nothing after it is read.
                self.read_state = State::Closed;
                self.incoming = Incoming::default();
                Ok(true)
            }
            // A second FINISH, or a record that does not open.
            Ok(_) | Err(_) => Err(self.fail(bad_record())),
        }
    }

    /// Gives back what was read.
    fn release_opened(&mut self) {
        if self.opened == 0 {
            self.incoming.advance(std::mem::take(&mut self.skip));
        }
    }

    fn take_data(&mut self, buf: &mut ReadBuf<'_>) {
        let len = self.opened.min(buf.remaining());
        buf.put_slice(&self.incoming.bytes()[..len]);
        self.incoming.advance(len);
        self.opened -= len;
        self.release_opened();
    }
}

impl<IO: AsyncWrite + Unpin> NoiseStream<IO> {
    /// Writes sealed records until none is left. Then flushes the transport, if `flush` is set and it was written to. An
    /// error becomes the state of writing.
    fn poll_send(&mut self, side: Side, flush: bool, cx: &mut Context<'_>) -> Poll<()> {
        if self.outgoing.is_empty() && !(flush && self.unflushed) {
            return Poll::Ready(());
        }
        let mut polled = self.poll_transport(flush, cx);
        if polled.is_pending() {
            if let Some(both) = self.waiting.with_other(side, cx.waker()) {
                polled = self.poll_transport(flush, &mut Context::from_waker(&both));
            }
        }
        if let Err(error) = ready!(polled) {
            self.fail_writing(error);
        }
        if let Side::Reader = side {
            // The transport may not wake it any more.
            self.waiting.wake_writer();
        }
        Poll::Ready(())
    }

    fn poll_transport(&mut self, flush: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => self.outgoing.advance(len),
            }
            self.unflushed = true;
        }
        self.outgoing = BytesMut::new();
        if flush && self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_parts<'a>(
        &mut self,
        cx: &mut Context<'_>,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Poll<io::Result<usize>> {
        self.write_state.check()?;
        if let State::Closed = self.write_state {
            let error = "the stream was shut down";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
        }
        if parts.clone().all(<[u8]>::is_empty) {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_send(Side::Writer, false, cx));
        self.write_state.check()?;
        let len = self.sealer.seal(DATA, parts, &mut self.outgoing);
        // An attempt: what is left is sent later. After an error, the peer cannot open this record.
        let _ = self.poll_send(Side::Writer, false, cx);
        self.write_state.check()?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_state.check()?;
        self.unflushed = true;
        ready!(self.poll_send(Side::Writer, true, cx));
        Poll::Ready(self.write_state.check())
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Open = self.write_state {
            ready!(self.poll_send(Side::Writer, false, cx));
            if let State::Open = self.write_state {
                self.sealer.seal(CLOSE, std::iter::empty(), &mut self.outgoing);
                self.write_state = State::Closed;
            }
        }
        ready!(self.poll_send(Side::Writer, false, cx));
        // Also after an error, but then without a CLOSE: the peer must not take what it has for all there is.
        let closed = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        self.unflushed = false;
        self.write_state.check()?;
        if let Err(error) = closed {
            self.fail_writing(error);
        }
        Poll::Ready(self.write_state.check())
    }

    fn recorded<T>(&mut self, side: Side, cx: &Context<'_>, polled: Poll<T>) -> Poll<T> {
        self.waiting.record(side, cx, polled.is_pending());
        polled
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> NoiseStream<IO> {
    fn poll_read_data(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.read_state.check()?;
        // A peer that writes before it reads must get what was written here. An error of that ends writing only: the
        // peer may have sent the reason before it closed the connection.
        let _ = self.poll_send(Side::Reader, true, cx);
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.opened > 0 {
                self.take_data(buf);
                return Poll::Ready(Ok(()));
            }
            if let State::Closed = self.read_state {
                return Poll::Ready(Ok(()));
            }
            if self.open_next()? {
                continue;
            }
            match ready!(self.incoming.poll_fill(&mut self.io, cx)) {
                Ok(0) if self.accept_unauthenticated_end && self.incoming.bytes().is_empty() => {
                    self.read_state = State::Closed;
                }
                Ok(0) => return Poll::Ready(Err(self.fail(truncated()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll_read_data(cx, buf);
        self.recorded(Side::Reader, cx, polled)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncWrite + Unpin> AsyncWrite for NoiseStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.poll_write_parts(cx, std::iter::once(buf));
        self.recorded(Side::Writer, cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_flush_all(cx);
        self.recorded(Side::Writer, cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_close(cx);
        self.recorded(Side::Writer, cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll_write_parts(cx, bufs.iter().map(|buf| &**buf));
        self.recorded(Side::Writer, cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl<IO: Transport> Transport for NoiseStream<IO> {
    /// The channel binding is made of the hash of the handshake, not that of a TLS session below: the hash covers that.
    fn describe(&self, info: &mut TransportInfo) {
        if info.channel_binding.is_none() {
            info.channel_binding = ChannelBinding::new("noise-handshake-hash", self.hash).ok();
        }
        self.io.describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.io.set_socket_options(options)
    }
}

impl<IO: fmt::Debug> fmt::Debug for NoiseStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoiseStream").field("io", &self.io).finish_non_exhaustive()
    }
}
