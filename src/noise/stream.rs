use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(feature = "test-util")]
use super::Suite;
#[cfg(feature = "test-util")]
use super::cipher::Cipher;
use super::cipher::TAG_LEN;
use super::incoming::Incoming;
use super::record::{CLOSE, DATA, MIN_SEALED_LEN, Opener, Sealer};
use super::symmetric::Hash;
use crate::frame::PREFIX_LEN;
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
/// All further writes, flushes and shutdowns fail with an error of the same kind, also if a read noticed the error. There is one
/// exception: if the peer's CLOSE has arrived, and nothing was written since, it is no error that the peer has closed the
/// connection before this side's CLOSE could be sent.
///
/// # Reading and writing
///
/// A write seals at most 64 KiB, in records of 16 KiB, keeps them until the transport has taken them, and returns how many
/// bytes of *this* buffer it took. They are sent by further writes, by `flush`, by `shutdown` and by reads, which also flush
/// the transport: writing and then reading makes progress without a flush, but flush before you wait for anything else. A
/// read that waits already, in another task, sends what a write left; only a transport that buffers must then be flushed.
/// Vectored writes are gathered into the same records.
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
    // How many bytes at the beginning of `incoming` are data. The tag follows them.
    opened: u16,
    read_state: State,
    write_state: State,
    ended: Ended,
    closing: Closing,
    waiting: Waiting,
    hash: Hash,
    accept_unauthenticated_end: bool,
}

/// The most data that a write takes, in bytes. It is sent in one system call, if the transport takes it.
const MAX_TAKEN: usize = 64 * 1024;

/// After so many records without data a read lets other tasks run.
const MAX_WITHOUT_DATA: usize = 64;

/// Whether reading has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    /// CLOSE was received, and nothing was written since.
    NothingWrittenSince,
    /// CLOSE was received, or the transport has ended and that is accepted.
    Yes,
}

/// How far a shutdown has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    Open,
    CloseSealed,
    TransportShutDown,
}

/// The state of one direction. As small as a pointer.
enum State {
    Good,
    Failed(Box<Failure>),
}

impl State {
    fn check(&mut self) -> io::Result<()> {
        match self {
            Self::Failed(failure) => Err(failure.report()),
            Self::Good => Ok(()),
        }
    }

    /// Returns whether the cause is that the peer has closed the connection.
    fn is_closed_by_peer(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        matches!(self, Self::Failed(failure) if matches!(failure.kind, BrokenPipe | ConnectionReset | NotConnected))
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
            read_state: State::Good,
            write_state: State::Good,
            ended: Ended::No,
            closing: Closing::Open,
            waiting: Waiting::default(),
            hash,
            accept_unauthenticated_end,
        }
    }

    /// Creates both ends of a session without a handshake, for unit tests of handlers. Requires the feature `test-util`.
    ///
    /// `client` and `server` are the ends of a pipe. **The keys are constants.**
    ///
    /// ```
    /// use std::io;
    ///
    /// use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    /// use tower_challenge::noise::{NoiseStream, Peer};
    /// use tower_challenge::{Authenticated, Identity, KeyId};
    ///
    /// type Stream = Authenticated<NoiseStream<DuplexStream>, Peer>;
    ///
    /// async fn greet(mut stream: Stream) -> io::Result<()> {
    ///     let greeting = format!("hello {}", stream.peer().identity().key_id());
    ///     stream.write_all(greeting.as_bytes()).await?;
    ///     stream.shutdown().await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (near, far) = duplex(1024);
    /// let (mut client, server) = NoiseStream::pair_without_handshake(near, far);
    /// let alice = Peer::without_handshake(Identity::new(KeyId::new("alice")?, ()));
    /// greet(Authenticated::without_handshake(server, alice)).await?;
    ///
    /// let mut greeting = String::new();
    /// client.read_to_string(&mut greeting).await?;
    /// assert_eq!(greeting, "hello alice");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "test-util")]
    pub fn pair_without_handshake<S>(client: IO, server: S) -> (Self, NoiseStream<S>) {
        let sealer = |key| Sealer::new(Cipher::new(Suite::Aes256Gcm, &[key; 32]));
        let opener = |key| Opener::new(Cipher::new(Suite::Aes256Gcm, &[key; 32]));
        let (up, down, hash) = (1, 2, [0; 32]);
        (
            Self::new(client, (sealer(up), opener(down)), hash, &[], false),
            NoiseStream::new(server, (sealer(down), opener(up)), hash, &[], false),
        )
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
        self.opened = 0;
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
                self.opened = u16::try_from(data).unwrap_or_else(|_| unreachable!("shorter than its record"));
                self.release_opened();
                Ok(true)
            }
            Ok((CLOSE, _)) => {
                // Nothing after it is read.
                self.ended = Ended::NothingWrittenSince;
                self.incoming = Incoming::default();
                Ok(true)
            }
            // A second FINISH, or a record that does not open.
            Ok(_) | Err(_) => Err(self.fail(bad_record())),
        }
    }

    /// Gives back a record whose data were read.
    fn release_opened(&mut self) {
        if self.opened == 0 {
            self.incoming.advance(TAG_LEN);
        }
    }

    fn take_data(&mut self, buf: &mut ReadBuf<'_>) {
        let len = usize::from(self.opened).min(buf.remaining());
        buf.put_slice(&self.incoming.bytes()[..len]);
        self.incoming.advance(len);
        self.opened -= u16::try_from(len).unwrap_or_else(|_| unreachable!("at most as many"));
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
        parts: &(impl Iterator<Item = &'a [u8]> + Clone),
    ) -> Poll<io::Result<usize>> {
        self.write_state.check()?;
        if self.closing > Closing::Open {
            let error = "the stream was shut down";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
        }
        if parts.clone().all(<[u8]>::is_empty) {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_send(Side::Writer, false, cx));
        self.write_state.check()?;
        if let Ended::NothingWrittenSince = self.ended {
            self.ended = Ended::Yes;
        }
        let len = self.sealer.seal_data(parts, MAX_TAKEN, &mut self.outgoing);
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
        if let Closing::Open = self.closing {
            // Also what the transport holds: an error after this concerns the CLOSE alone.
            ready!(self.poll_send(Side::Writer, true, cx));
            if let State::Good = self.write_state {
                self.sealer.seal_close(&mut self.outgoing);
                self.closing = Closing::CloseSealed;
            }
        }
        ready!(self.poll_send(Side::Writer, false, cx));
        if let Closing::TransportShutDown = self.closing {
            // A second shutdown of a socket is an error, once the peer has closed it as well.
            return Poll::Ready(self.write_state.check());
        }
        // Also after an error, but then without a CLOSE: the peer must not take what it has for all there is.
        let closed = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        self.unflushed = false;
        if let (State::Good, Err(error)) = (&self.write_state, closed) {
            self.fail_writing(error);
        }
        if self.ended == Ended::NothingWrittenSince
            && self.closing == Closing::CloseSealed
            && self.write_state.is_closed_by_peer()
        {
            // The peer has said that it ends, and has closed the connection without a wait for this CLOSE.
            self.write_state = State::Good;
        }
        self.write_state.check()?;
        self.closing = Closing::TransportShutDown;
        Poll::Ready(Ok(()))
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
        let mut without_data = 0;
        loop {
            if self.opened > 0 {
                self.take_data(buf);
                return Poll::Ready(Ok(()));
            }
            if self.ended != Ended::No {
                return Poll::Ready(Ok(()));
            }
            if self.open_next()? {
                // Otherwise a peer that sends nothing else would occupy this task.
                without_data += usize::from(self.opened == 0);
                if without_data == MAX_WITHOUT_DATA {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            }
            match ready!(self.incoming.poll_fill(&mut self.io, cx)) {
                Ok(0) if self.accept_unauthenticated_end && self.incoming.bytes().is_empty() => {
                    self.ended = Ended::Yes;
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
        let polled = self.poll_write_parts(cx, &std::iter::once(buf));
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
        let polled = self.poll_write_parts(cx, &bufs.iter().map(|buf| &**buf));
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

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::record::FINISH;
    use super::super::record::wire_len;
    use super::*;

    fn pair() -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let (near, far) = duplex(1024);
        NoiseStream::pair_without_handshake(near, far)
    }

    /// What a peer may send, and this side does not.
    #[tokio::test]
    async fn records_without_data_are_skipped() {
        let (mut client, mut server) = pair();
        for data in [&b""[..], b"", b"one", b"", b"two"] {
            client.sealer.seal(DATA, std::iter::once(data), data.len(), &mut client.outgoing);
        }
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"onetwo");
    }

    #[tokio::test]
    async fn records_without_data_do_not_occupy_a_task() {
        let (near, far) = duplex(1 << 20);
        let (mut client, mut server) = NoiseStream::pair_without_handshake(near, far);
        for _ in 0..1000 {
            client.sealer.seal(DATA, std::iter::empty(), 0, &mut client.outgoing);
        }
        client.write_all(b"data").await.unwrap();
        let mut received = [0; 4];
        let mut read = tokio_test::task::spawn(server.read_exact(&mut received));
        let mut pending = 0;
        while read.poll().is_pending() {
            // It goes on by itself.
            assert!(read.is_woken());
            pending += 1;
        }
        assert_eq!(pending, 1000 / MAX_WITHOUT_DATA);
        drop(read);
        assert_eq!(&received, b"data");
    }

    /// They open, and are not allowed there.
    #[tokio::test]
    async fn records_that_the_protocol_does_not_allow_are_errors() {
        for (kind, data) in [(FINISH, &b""[..]), (FINISH, b"x"), (CLOSE, b"x"), (3, b""), (255, b"x")] {
            let (mut client, mut server) = pair();
            client.write_all(b"before").await.unwrap();
            client.sealer.seal(kind, std::iter::once(data), data.len(), &mut client.outgoing);
            client.write_all(b"after").await.unwrap();
            let mut received = Vec::new();
            let error = server.read_to_end(&mut received).await.unwrap_err();
            assert_eq!(
                (error.kind(), &received[..]),
                (ErrorKind::InvalidData, &b"before"[..]),
                "type {kind}"
            );
            assert!(server.write_all(b"x").await.is_err());
        }
    }

    /// Its length is known before its bytes have arrived.
    #[tokio::test]
    async fn record_that_is_too_short_is_an_error_at_once() {
        for len in 0..MIN_SEALED_LEN {
            let (mut near, far) = duplex(64);
            let (_, mut server) = NoiseStream::pair_without_handshake((), far);
            near.write_u16(len.try_into().unwrap()).await.unwrap();
            assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }

    /// The lengths of the writes. Nothing arrives.
    #[derive(Default)]
    struct Writes(Vec<usize>);

    impl AsyncRead for Writes {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    static LONG: [u8; 64 * 1024] = [0; 64 * 1024];

    fn counting() -> NoiseStream<Writes> {
        NoiseStream::pair_without_handshake(Writes::default(), ()).0
    }

    #[tokio::test]
    async fn long_write_is_one_write_to_the_transport() {
        let mut stream = counting();
        for writes in 1..10 {
            stream.write_all(&LONG).await.unwrap();
            assert_eq!(stream.io.0, vec![wire_len(LONG.len()); writes]);
        }
        stream.io.0.clear();
        stream.write_all(&LONG.repeat(16)).await.unwrap();
        assert_eq!(stream.io.0, [wire_len(LONG.len()); 16]);
    }
}
