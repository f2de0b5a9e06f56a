use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures_core::Stream as _;
use futures_sink::Sink;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::codec::Framed;

use super::first_bytes::Recording;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Handshake, Input, Mechanism, PeerOf, Reject, Role as _, Start, Step, StreamOf};

/// How much larger the read buffer is than the longest message, in bytes. A read that fills its buffer is followed by
/// another one that finds nothing, and the spare room avoids that system call.
const BUFFER_SLACK: usize = 64;

/// How many bytes of a refused peer are read and discarded. Closing a socket with unread data makes the kernel reset
/// the connection, and the peer could not read the verdict.
const LINGER_LIMIT: usize = 64 * 1024;

/// How many of them are read at a time, on the stack.
const LINGER_CHUNK: usize = 2 * 1024;

pin_project! {
    /// The messages of a handshake, without a deadline.
    pub(super) struct Exchange<IO, M: Mechanism> {
        // The stream is dropped when the exchange completes, not when the future is dropped.
        live: Option<Live<IO, M::Handshake>>,
        state: State<PeerOf<M>>,
        #[pin]
        lookup: Option<<M::Handshake as Handshake>::Lookup>,
        started: Instant,
    }
}

struct Live<IO, H: Handshake> {
    framed: Framed<IO, Recording<H::Codec>>,
    handshake: H,
    // Kept while the peer may have sent a refusal before it closed.
    failed_write: Option<HandshakeError>,
}

enum State<P> {
    /// Writing a message.
    Sending(Then<P>),
    /// Waiting for the peer's next message.
    Receiving,
    /// Waiting for the result of a lookup.
    LookingUp {
        since: Instant,
    },
    /// Writing the verdict and shutting down the write side.
    ShuttingDown(HandshakeError),
    /// Discarding input so that the peer can read the verdict.
    Lingering {
        error: HandshakeError,
        left: usize,
    },
    /// Failed before the first message.
    Failed(HandshakeError),
    Over,
}

/// What follows after a message is written.
enum Then<P> {
    Receive,
    Complete(P),
}

/// The stream of a successful exchange, with the bytes that were read after the last message.
pub(super) struct Completed<T, P> {
    pub(super) io: T,
    pub(super) read_ahead: BytesMut,
    pub(super) peer: P,
}

type CompletedOf<M, IO> = Completed<StreamOf<M, IO>, PeerOf<M>>;

impl<IO, M: Mechanism> Exchange<IO, M> {
    /// Returns whether the handshake waits for this side's key source.
    pub(super) fn is_looking_up(&self) -> bool {
        matches!(self.state, State::LookingUp { .. })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism> Exchange<IO, M> {
    pub(super) fn new(io: IO, start: Result<Start<M::Handshake>, HandshakeError>) -> Self {
        let Start { codec, handshake, send } = match start {
            Ok(start) => start,
            Err(error) => return Self::failed(error),
        };
        // Created without buffers, since both would get the same size.
        let mut framed = Framed::with_capacity(io, Recording::new(codec), 0);
        framed.read_buffer_mut().reserve(M::Handshake::MAX_RECV_LEN + BUFFER_SLACK);
        framed.write_buffer_mut().reserve(M::Handshake::MAX_SEND_LEN);
        let mut live = Live { framed, handshake, failed_write: None };
        let state = match send {
            None => State::Receiving,
            Some(message) => match live.put(message) {
                Ok(()) => State::Sending(Then::Receive),
                Err(error) => State::Failed(error),
            },
        };
        Self { live: Some(live), state, lookup: None, started: Instant::now() }
    }

    /// Creates one that has failed already.
    pub(super) fn failed(error: HandshakeError) -> Self {
        Self { live: None, state: State::Failed(error), lookup: None, started: Instant::now() }
    }

    /// Ends the exchange for a reason outside of it. If the peer was refused already, that remains the error.
    pub(super) fn cut_short(self: Pin<&mut Self>, kind: HandshakeErrorKind) -> HandshakeError {
        let mut this = self.project();
        let first_bytes = this.live.take().map(|live| live.framed.codec().first_bytes);
        this.lookup.set(None);
        match std::mem::replace(this.state, State::Over) {
            State::ShuttingDown(error) | State::Lingering { error, .. } | State::Failed(error) => error,
            // The peer did its part: this side's key source was too slow. Unless the peer took most of the time itself:
            // it could escape the penalty with a proof just before the deadline.
            State::LookingUp { since }
                if kind == HandshakeErrorKind::TimedOut && since.elapsed() >= since - *this.started =>
            {
                HandshakeError::with_detail(
                    HandshakeErrorKind::KeySource,
                    "the lookup did not complete within the handshake's deadline",
                )
            }
            State::Sending(_) | State::Receiving | State::LookingUp { .. } | State::Over => {
                first_bytes.unwrap_or_default().explain::<M>(kind.into())
            }
        }
    }

    /// Returns the error of a peer that has been refused and still reads the verdict.
    pub(super) fn refused(&self) -> Option<&HandshakeError> {
        match &self.state {
            State::ShuttingDown(error) | State::Lingering { error, .. } => Some(error),
            State::Sending(_)
            | State::Receiving
            | State::LookingUp { .. }
            | State::Failed(_)
            | State::Over => None,
        }
    }

    pub(super) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<CompletedOf<M, IO>, HandshakeError>> {
        let outcome = ready!(self.as_mut().poll_outcome(cx));
        let this = self.project();
        *this.state = State::Over;
        let Some(live) = this.live.take() else {
            return Poll::Ready(outcome.map(|_| unreachable!("an exchange that completes has its stream")));
        };
        let parts = live.framed.into_parts();
        Poll::Ready(match outcome {
            Ok(peer) => {
                let (io, read_ahead) = live.handshake.wrap(parts.io, parts.read_buf);
                Ok(Completed { io, read_ahead, peer })
            }
            Err(error) => Err(parts.codec.first_bytes.explain::<M>(error)),
        })
    }

    fn poll_outcome(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<PeerOf<M>, HandshakeError>> {
        let mut this = self.project();
        loop {
            let live = match (&mut *this.live, &mut *this.state) {
                (Some(live), state) if !matches!(state, State::Failed(_)) => live,
                (_, State::Failed(error)) => return Poll::Ready(Err(take(error))),
                _ => panic!("polled after completion"),
            };
            let input = match this.state {
                State::Sending(_) => {
                    let written = ready!(live.poll_flush(cx));
                    let State::Sending(then) = std::mem::replace(this.state, State::Receiving) else {
                        unreachable!("matched above")
                    };
                    match (written, then) {
                        // message written -> wait for the peer's message
                        (Ok(()), Then::Receive) => {}
                        // last message written -> complete
                        (Ok(()), Then::Complete(peer)) => return Poll::Ready(Ok(peer)),
                        // write failed -> the peer may have sent a refusal before it closed
                        (Err(error), Then::Receive) if M::Role::READS_ON_AFTER_FAILED_WRITE => {
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
                State::LookingUp { .. } => {
                    let lookup = this.lookup.as_mut().as_pin_mut().expect("set in this state");
                    let found = ready!(lookup.poll(cx));
                    this.lookup.set(None);
                    Input::Found(found)
                }
                State::ShuttingDown(error) => {
                    let closed = ready!(live.poll_close(cx));
                    let error = take(error);
                    if closed.is_err() {
                        return Poll::Ready(Err(error));
                    }
                    // verdict written -> discard input until the peer closes
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
                    State::LookingUp { since: Instant::now() }
                }
                Ok(Step::Complete { send, peer }) => {
                    // A peer that accepts an answer it cannot have read is not trusted.
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
    /// Puts a message into the write buffer, which is empty: each message is written before the next one.
    fn put(&mut self, message: H::Message) -> Result<(), HandshakeError> {
        Pin::new(&mut self.framed).start_send(message).map_err(Into::into)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Sink::<H::Message>::poll_flush(Pin::new(&mut self.framed), cx).map_err(Into::into)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Sink::<H::Message>::poll_close(Pin::new(&mut self.framed), cx).map_err(Into::into)
    }

    /// Returns why no message arrived. A failed write says more than the end of the stream that follows it.
    fn ended(&mut self, error: Option<impl Into<HandshakeError>>) -> HandshakeError {
        self.failed_write
            .take()
            .or(error.map(Into::into))
            .unwrap_or(HandshakeError::new(HandshakeErrorKind::UnexpectedEof))
    }
}

/// Discards input until the peer closes, the connection fails, or `left` bytes were read.
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

/// Takes the error out of a state that is not entered again.
fn take(error: &mut HandshakeError) -> HandshakeError {
    std::mem::replace(error, HandshakeError::refused())
}
