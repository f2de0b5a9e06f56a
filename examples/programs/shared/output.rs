//! Lines for the standard output and the standard error that neither panic nor block.
//!
//! Peers decide how much a server prints. `println!` panics if the reader of the output is gone and blocks if the reader
//! has stopped, so a peer could end or stall the server. Here a thread for each stream writes the lines, behind a
//! bounded queue. Lines that find the queue full are dropped and counted.

use std::fmt::Display;
use std::io::{self, Write};
use std::mem::take;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many bytes may wait in a queue. One more line, of any length, is accepted below this number.
const MAX_QUEUED: usize = 64 * 1024;

/// How long the end of a program waits for the lines that are queued.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Output> = LazyLock::new(|| Output::start(io::stdout()));
static STDERR: LazyLock<Output> = LazyLock::new(|| Output::start(io::stderr()));

/// Prints a line on the standard output.
pub(crate) fn out(line: impl Display) {
    STDOUT.push(format!("{line}\n").as_bytes());
}

/// Prints a line on the standard error.
pub(crate) fn err(line: impl Display) {
    STDERR.push(format!("{line}\n").as_bytes());
}

/// Waits until all lines are written, for at most a second. Lines that are still queued when the process ends are lost.
pub(crate) fn flush() {
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    STDERR.wait_until_empty(deadline);
    STDOUT.wait_until_empty(deadline);
}

/// A writer of whole lines to the standard output, for `tracing_subscriber`. Each `write` is one line.
pub(crate) struct LineWriter;

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDOUT.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Output(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    dropped: usize,
    is_writing: bool,
}

impl Output {
    fn start(mut stream: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let clone = Arc::clone(&shared);
        let run = move || {
            loop {
                let bytes = clone.next();
                // The reader may be gone. There is nowhere else to print that.
                let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            }
        };
        // Without a thread, the queue fills up once and the program runs on.
        let _ = thread::Builder::new().name("output".to_owned()).spawn(run);
        Self(shared)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        if queue.bytes.len() < MAX_QUEUED {
            queue.bytes.extend_from_slice(line);
            self.0.changed.notify_all();
        } else {
            queue.dropped += 1;
        }
    }

    fn wait_until_empty(&self, deadline: Instant) {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.bytes.is_empty();
        drop(self.0.changed.wait_timeout_while(self.0.lock(), timeout, is_busy));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and takes all of them, for the thread that writes.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        queue.is_writing = false;
        self.changed.notify_all();
        while queue.bytes.is_empty() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.is_writing = true;
        let mut bytes = take(&mut queue.bytes);
        if queue.dropped > 0 {
            let dropped = take(&mut queue.dropped);
            bytes.extend_from_slice(
                format!("{dropped} lines dropped: the reader of this output is too slow\n").as_bytes(),
            );
        }
        bytes
    }
}
