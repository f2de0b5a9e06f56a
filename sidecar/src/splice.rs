//! Moves bytes from socket to socket within the kernel: `splice(2)`, through a pipe.
//!
//! Each thread keeps one empty pipe and lends it while bytes are in flight, so that an idle session holds none.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use crate::socket::Socket;

/// The size of a pipe, in bytes, if the system allows it.
const LEN: usize = 256 * 1024;

/// How many pipes are lent at a time. Further sessions copy.
static MAX_LENT: AtomicUsize = AtomicUsize::new(0);

static LENT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: Cell<Option<Ends>> = const { Cell::new(None) };
}

/// Allows pipes that take about a sixteenth of this many open files. Returns how many open files they take.
pub(crate) fn set_limit(open_files: usize) -> usize {
    let pipes = (open_files / 32).min(32);
    MAX_LENT.store(pipes, Ordering::Relaxed);
    2 * pipes
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe with bytes that were taken from one socket and not yet passed to the other.
pub(crate) struct Pipe {
    // Taken when it is dropped.
    ends: Option<Ends>,
    filled: usize,
}

impl Pipe {
    /// Takes an empty pipe. Fails without free file descriptors, and if too many are in use.
    pub(crate) fn take() -> io::Result<Self> {
        if LENT.fetch_add(1, Ordering::Relaxed) >= MAX_LENT.load(Ordering::Relaxed) {
            LENT.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::other("too many pipes are in use"));
        }
        // From here on, dropping it counts it back.
        let mut pipe = Self { ends: None, filled: 0 };
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        pipe.ends = Some(spare.map_or_else(Ends::new, Ok)?);
        Ok(pipe)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Fills an empty pipe. Returns how many bytes there were. 0 is not always the end: urgent data may be in between.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &Socket) -> Poll<io::Result<usize>> {
        let Ends { write, .. } = self.ends();
        let filled = ready!(poll_io(cx, from, Interest::READABLE, || {
            splice(from, None, write, None, LEN, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)
        }))?;
        self.filled = filled;
        Poll::Ready(Ok(filled))
    }

    /// Passes on some of the bytes. Returns how many.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Socket) -> Poll<io::Result<usize>> {
        let (Ends { read, .. }, len) = (self.ends(), self.filled);
        let drained = ready!(poll_io(cx, to, Interest::WRITABLE, || {
            splice(read, None, to, None, len, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)
        }))?;
        self.filled -= drained;
        Poll::Ready(Ok(drained))
    }

    fn ends(&self) -> &Ends {
        self.ends.as_ref().expect("taken when dropped")
    }
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The default, 64 KiB, will do as well.
        let _ = fcntl_setpipe_size(&write, LEN);
        Ok(Self { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        LENT.fetch_sub(1, Ordering::Relaxed);
        // With bytes in it, it is of no use to another session.
        if self.is_empty() && self.ends.is_some() {
            let ends = self.ends.take();
            let _ = SPARE.try_with(|spare| spare.set(ends));
        }
    }
}

/// Tries an operation whenever the socket is ready for it, until it would not block.
fn poll_io(
    cx: &mut Context<'_>,
    socket: &Socket,
    interest: Interest,
    mut operation: impl FnMut() -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_ready(cx, interest))?;
        match socket.try_io(interest, || Ok(operation()?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}
