//! One direction of a session: copies from one stream to another until the end, and passes the end on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::Buffer;
use crate::socket::OverSocket;
use crate::splice::Pipe;

/// The reason why a direction stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its source: nothing more can be read.
    Source(io::Error),
    /// Its destination: nothing more can be written.
    Destination(io::Error),
}

/// The bytes that a direction has moved.
#[derive(Clone)]
pub(crate) struct Meter {
    moved: Arc<AtomicU64>,
    counter: Counter,
}

impl Meter {
    pub(crate) fn new(counter: Counter) -> Self {
        Self { moved: Arc::default(), counter }
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn add(&self, len: usize) {
        self.moved.fetch_add(len as u64, Ordering::Relaxed);
        self.counter.increment(len as u64);
    }
}

/// With less room than this in the buffer, what was read is written first.
const MIN_ROOM: usize = 16 * 1024;

/// The number of bytes after which a poll ends.
const MAX_MOVED: usize = 512 * 1024;

/// The number of bytes in one read from which on they count as bulk data, for which the kernel moves them more cheaply than a copy.
const BULK_LEN: usize = 64 * 1024;

pub(crate) struct Direction {
    state: State,
    meter: Meter,
    // Whether the destination may hold back what was written.
    unflushed: bool,
    // Whether an end of the source is an error.
    no_end: bool,
    // Whether the last poll left it to others, although there may be more.
    has_yielded: bool,
}

enum State {
    Reading,
    Writing(Buffer, After),
    Splicing(Pipe),
    /// The source has failed. What was read before is sent.
    Flushing(io::Error),
    /// The source has ended.
    Closing,
    Over,
}

/// The event that follows the data.
enum After {
    More,
    End,
    Failure(io::Error),
}

impl From<After> for State {
    fn from(after: After) -> Self {
        match after {
            After::More => Self::Reading,
            After::End => Self::Closing,
            After::Failure(error) => Self::Flushing(error),
        }
    }
}

impl Direction {
    pub(crate) fn new(meter: Meter) -> Self {
        Self { state: State::Reading, meter, unflushed: false, no_end: false, has_yielded: false }
    }

    /// No end is passed on any more.
    pub(crate) fn forbid_end(&mut self) {
        self.no_end = true;
    }

    pub(crate) const fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Returns whether everything that was read has been sent.
    pub(crate) const fn is_drained(&self) -> bool {
        matches!(self.state, State::Reading | State::Over) && !self.unflushed && !self.has_yielded
    }

    /// Copies until the end of the source was passed on, or until a failure. Not to be polled when it is over.
    pub(crate) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + OverSocket + Unpin,
        W: AsyncWrite + OverSocket + Unpin,
    {
        let mut moved = 0;
        self.has_yielded = false;
        loop {
            if moved >= MAX_MOVED {
                // The other direction, and other sessions.
                self.has_yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match &mut self.state {
                State::Reading => match poll_read(cx, from) {
                    Poll::Ready((buffer, after)) if buffer.filled().is_empty() => self.state = after.into(),
                    Poll::Ready((buffer, after)) => self.state = State::Writing(buffer, after),
                    Poll::Pending => {
                        if self.unflushed {
                            if let Err(error) = ready!(Pin::new(&mut *to).poll_flush(cx)) {
                                return self.fail(Failure::Destination(error));
                            }
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                State::Writing(buffer, after) => {
                    match ready!(Pin::new(&mut *to).poll_write(cx, buffer.filled())) {
                        Ok(0) => return self.fail(Failure::Destination(io::ErrorKind::WriteZero.into())),
                        Ok(len) => {
                            self.unflushed = true;
                            self.meter.add(len);
                            moved += len;
                            buffer.advance(len);
                            if buffer.filled().is_empty() {
                                let is_bulk = buffer.len() >= BULK_LEN;
                                let after = std::mem::replace(after, After::More);
                                // written -> the next is read
                                self.state = match pipe(is_bulk, from, to) {
                                    Some(pipe) if matches!(after, After::More) => State::Splicing(pipe),
                                    _ => after.into(),
                                };
                            }
                        }
                        Err(error) => return self.fail(Failure::Destination(error)),
                    }
                }
                State::Splicing(pipe) if pipe.is_empty() => match pipe.poll_fill(cx, from.socket()) {
                    // The pipe is given back. Only a read tells whether this is the end.
                    Poll::Ready(Ok(0)) | Poll::Pending => {
                        (self.state, self.unflushed) = (State::Reading, false);
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => self.state = State::Flushing(error),
                },
                State::Splicing(pipe) => match ready!(pipe.poll_drain(cx, to.socket())) {
                    Ok(len) => {
                        self.meter.add(len);
                        moved += len;
                    }
                    Err(error) => return self.fail(Failure::Destination(error)),
                },
                State::Flushing(_) => {
                    // If this fails, too, the first error is the cause.
                    let _ = ready!(Pin::new(&mut *to).poll_flush(cx));
                    let State::Flushing(error) = std::mem::replace(&mut self.state, State::Over) else {
                        unreachable!("matched above")
                    };
                    return self.fail(Failure::Source(error));
                }
                State::Closing if self.no_end => {
                    self.state = State::Flushing(io::ErrorKind::UnexpectedEof.into());
                }
                State::Closing => {
                    if let Err(error) = ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        return self.fail(Failure::Destination(error));
                    }
                    self.unflushed = false;
                    self.state = State::Over;
                    return Poll::Ready(Ok(()));
                }
                State::Over => unreachable!("not polled when it is over"),
            }
        }
    }

    fn fail(&mut self, failure: Failure) -> Poll<Result<(), Failure>> {
        (self.state, self.unflushed) = (State::Over, false);
        Poll::Ready(Err(failure))
    }
}

/// Reads as much as fits into a buffer: a source of records may have more after the first one.
fn poll_read<R>(cx: &mut Context<'_>, from: &mut R) -> Poll<(Buffer, After)>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = Buffer::take();
    loop {
        let mut unfilled = buffer.unfilled();
        match Pin::new(&mut *from).poll_read(cx, &mut unfilled) {
            Poll::Ready(Ok(())) => match unfilled.filled().len() {
                0 => return Poll::Ready((buffer, After::End)),
                len => buffer.fill(len),
            },
            Poll::Ready(Err(error)) => return Poll::Ready((buffer, After::Failure(error))),
            Poll::Pending if buffer.len() == 0 => return Poll::Pending,
            Poll::Pending => return Poll::Ready((buffer, After::More)),
        }
        if buffer.room() < MIN_ROOM {
            return Poll::Ready((buffer, After::More));
        }
    }
}

/// Returns a pipe if the kernel can move the data.
fn pipe(is_bulk: bool, from: &impl OverSocket, to: &impl OverSocket) -> Option<Pipe> {
    (is_bulk && from.reads_raw() && to.writes_raw()).then(Pipe::take)?.ok()
}
