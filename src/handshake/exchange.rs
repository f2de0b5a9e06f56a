use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures_core::Stream as _;
use futures_sink::Sink;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::codec::Framed;

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Handshake, Input, Reject, Role, Start, Step};

/// How much larger than the longest message the read buffer is. A read that fills its buffer has to be followed by
/// another that finds nothing; room for a little more saves that system call in most handshakes.
const BUFFER_SLACK: usize = 64;

/// How much a peer that has been refused may still send before it is cut off, in bytes. What is left unread when a
/// socket is closed makes the kernel reset the connection, and the peer would not get to read the verdict.
const LINGER_LIMIT: usize = 64 * 1024;

/// How much of that is read, and thrown away, at a time. On the stack.
const LINGER_CHUNK: usize = 2 * 1024;

pin_project! {
    /// A handshake from its first message to its last, however long that takes.
    pub(super) struct Exchange<IO, H: Handshake, R> {
        // The stream is dropped the moment the exchange is over, not when the future is.
        live: Option<Live<IO, H>>,
        state: State<H::Peer>,
        #[pin]
        lookup: Option<H::Lookup>,
        role: PhantomData<fn() -> R>,
    }
}

struct Live<IO, H: Handshake> {
    framed: Framed<IO, H::Codec>,
    handshake: H,
    // Of a peer that may have said why it closed before it had read our message.
    failed_write: Option<HandshakeError>,
}

enum State<P> {
    /// A message is being written.
    Sending(Then<P>),
    /// The peer's next message is awaited.
    Receiving,
    /// The outcome of a lookup is awaited.
    LookingUp,
    /// The verdict is written and the write side shut down.
    ShuttingDown(HandshakeError),
    /// What the peer still sends is read and thrown away, so that it gets to read the verdict.
    Lingering {
        error: HandshakeError,
        left: usize,
    },
    /// Over before it began.
    Failed(HandshakeError),
    Over,
}

/// What follows when a message is written.
enum Then<P> {
    Receive,
    Complete(P),
}

/// A stream at the end of a successful exchange, with what was read behind the last message.
pub(super) struct Completed<IO, P> {
    pub(super) io: IO,
    pub(super) read_ahead: BytesMut,
    pub(super) peer: P,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, H: Handshake, R: Role> Exchange<IO, H, R> {
    pub(super) fn new(io: IO, start: Result<Start<H>, HandshakeError>) -> Self {
        let Start { codec, handshake, send } = match start {
            Ok(start) => start,
            Err(error) => return Self::failed(error),
        };
        // Made without any buffers, then given one of its own size each.
        let mut framed = Framed::with_capacity(io, codec, 0);
        framed.read_buffer_mut().reserve(H::LONGEST_RECEIVED + BUFFER_SLACK);
        framed.write_buffer_mut().reserve(H::LONGEST_SENT);
        let mut live = Live { framed, handshake, failed_write: None };
        let state = match send {
            None => State::Receiving,
            Some(message) => match live.put(message) {
                Ok(()) => State::Sending(Then::Receive),
                Err(error) => State::Failed(error),
            },
        };
        Self { live: Some(live), state, lookup: None, role: PhantomData }
    }

    /// Over before it began.
    pub(super) fn failed(error: HandshakeError) -> Self {
        Self { live: None, state: State::Failed(error), lookup: None, role: PhantomData }
    }

    /// Ends the exchange from outside. A refused peer whose time to read the verdict is up has been refused.
    pub(super) fn cut_short(self: Pin<&mut Self>, kind: HandshakeErrorKind) -> HandshakeError {
        let mut this = self.project();
        *this.live = None;
        this.lookup.set(None);
        match std::mem::replace(this.state, State::Over) {
            State::ShuttingDown(error) | State::Lingering { error, .. } | State::Failed(error) => error,
            // The peer has done all that it could.
            State::LookingUp if kind == HandshakeErrorKind::TimedOut => HandshakeError::with_source(
                HandshakeErrorKind::KeySource,
                "the key was not looked up in time",
            ),
            State::Sending(_) | State::Receiving | State::LookingUp | State::Over => {
                HandshakeError::new(kind)
            }
        }
    }

    pub(super) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Completed<IO, H::Peer>, HandshakeError>> {
        let outcome = ready!(self.as_mut().poll_outcome(cx));
        let this = self.project();
        *this.state = State::Over;
        let live = this.live.take();
        Poll::Ready(outcome.map(|peer| {
            let parts = live.expect("an exchange that completes has its stream").framed.into_parts();
            Completed { io: parts.io, read_ahead: parts.read_buf, peer }
        }))
    }

    fn poll_outcome(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<H::Peer, HandshakeError>> {
        let mut this = self.project();
        loop {
            let live = match (&mut *this.live, &mut *this.state) {
                (Some(live), state) if !matches!(state, State::Failed(_)) => live,
                (_, State::Failed(error)) => return Poll::Ready(Err(take(error))),
                _ => panic!("handshake polled after it was over"),
            };
            let input = match this.state {
                State::Sending(_) => {
                    let written = ready!(live.poll_flush(cx));
                    let State::Sending(then) = std::mem::replace(this.state, State::Receiving) else {
                        unreachable!("matched above")
                    };
                    match (written, then) {
                        // message written -> peer's message awaited
                        (Ok(()), Then::Receive) => {}
                        // last message written -> over
                        (Ok(()), Then::Complete(peer)) => return Poll::Ready(Ok(peer)),
                        // message not written -> peer's message awaited all the same
                        (Err(error), Then::Receive) if R::READS_ON_AFTER_FAILED_WRITE => {
                            live.failed_write = Some(error);
                            live.framed.write_buffer_mut().clear();
                        }
                        (Err(error), _) => return Poll::Ready(Err(error)),
                    }
                    continue;
                }
                State::Receiving => match ready!(Pin::new(&mut live.framed).poll_next(cx)) {
                    Some(Ok(frame)) => Input::Frame(frame),
                    ended => return Poll::Ready(Err(live.ended(ended.and_then(Result::err)))),
                },
                State::LookingUp => {
                    let lookup = this.lookup.as_mut().as_pin_mut().expect("set when a lookup is asked for");
                    let found = ready!(lookup.poll(cx));
                    this.lookup.set(None);
                    Input::Found(found)
                }
                State::ShuttingDown(error) => {
                    // Whether the peer could be told or not, it has been refused.
                    let told = ready!(live.poll_close(cx));
                    let error = take(error);
                    if told.is_err() {
                        return Poll::Ready(Err(error));
                    }
                    // verdict written -> read on until the peer has closed
                    *this.state = State::Lingering { error, left: LINGER_LIMIT };
                    continue;
                }
                State::Lingering { error, left } => {
                    ready!(poll_drain(live.framed.get_mut(), left, cx));
                    return Poll::Ready(Err(take(error)));
                }
                State::Failed(_) | State::Over => unreachable!("handled above"),
            };
            *this.state = match live.handshake.step(input) {
                Ok(Step::Continue { send: None }) => State::Receiving,
                Ok(Step::Continue { send: Some(message) }) => {
                    live.put(message)?;
                    State::Sending(Then::Receive)
                }
                Ok(Step::LookUp(lookup)) => {
                    this.lookup.set(Some(lookup));
                    State::LookingUp
                }
                Ok(Step::Complete { send, peer }) => {
                    // A peer that accepts what it can't have read is not believed.
                    if let Some(error) = live.failed_write.take() {
                        return Poll::Ready(Err(error));
                    }
                    match send {
                        None => return Poll::Ready(Ok(peer)),
                        Some(message) => {
                            live.put(message)?;
                            State::Sending(Then::Complete(peer))
                        }
                    }
                }
                Err(Reject { error, send: None }) => return Poll::Ready(Err(error)),
                Err(Reject { error, send: Some(verdict) }) => match live.put(verdict) {
                    Ok(()) => State::ShuttingDown(error),
                    Err(_) => return Poll::Ready(Err(error)),
                },
            };
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, H: Handshake> Live<IO, H> {
    /// Puts a message into the write buffer, which is empty: nothing is sent before the last one is written.
    fn put(&mut self, message: H::Message) -> Result<(), HandshakeError> {
        Pin::new(&mut self.framed).start_send(message).map_err(Into::into)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Sink::<H::Message>::poll_flush(Pin::new(&mut self.framed), cx).map_err(Into::into)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Sink::<H::Message>::poll_close(Pin::new(&mut self.framed), cx).map_err(Into::into)
    }

    /// Why no message came. A failed write says more than the end of the stream that it leads to.
    fn ended(&mut self, error: Option<impl Into<HandshakeError>>) -> HandshakeError {
        self.failed_write
            .take()
            .or(error.map(Into::into))
            .unwrap_or(HandshakeError::new(HandshakeErrorKind::ClosedEarly))
    }
}

/// Reads and throws away until the peer has closed, its connection fails, or `left` bytes have come.
fn poll_drain<IO: AsyncRead + Unpin>(io: &mut IO, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
    let mut chunk = [0; LINGER_CHUNK];
    loop {
        let mut buf = ReadBuf::new(&mut chunk);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
        let len = buf.filled().len();
        if read.is_err() || len == 0 || len >= *left {
            return Poll::Ready(());
        }
        *left -= len;
    }
}

/// The error out of a state that is left for good.
fn take(error: &mut HandshakeError) -> HandshakeError {
    std::mem::replace(error, HandshakeError::refused())
}
