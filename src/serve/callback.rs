use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ServeError;
use super::panic::contain;
use crate::observe;
use crate::transport::PeerAddr;

/// How many errors may wait for the callback.
const QUEUE_LEN: usize = 1024;

/// How long a server that stops waits for the callback to handle what is queued.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where errors of an accept loop go: to a callback, or to the log if there is none.
///
/// The callback is foreign code, and peers decide how often it is called. It runs in a thread of its own behind a
/// bounded queue, so that one that panics or blocks neither ends nor stalls the server. Not in tokio's blocking pool,
/// which a runtime waits for when it shuts down.
pub(crate) struct ErrorCallback<A> {
    state: State<A>,
    dropped: usize,
}

enum State<A> {
    /// No callback: errors are logged by the feature `tracing`.
    Log,
    /// Not called yet, and without a thread.
    Idle(OnError<A>),
    Running(Worker<A>),
}

/// The callback. Its panics are caught and counted, also those of what it captured when that is dropped.
struct OnError<A> {
    // `None` while it is dropped.
    on_error: Option<Box<dyn FnMut(ServeError<A>) + Send>>,
    panics: Arc<AtomicUsize>,
}

struct Worker<A> {
    queue: SyncSender<ServeError<A>>,
    panics: Arc<AtomicUsize>,
    // Fails when the thread ends.
    finished: oneshot::Receiver<()>,
}

impl<A> ErrorCallback<A> {
    pub(crate) const fn log() -> Self {
        Self { state: State::Log, dropped: 0 }
    }

    pub(crate) fn new(on_error: impl FnMut(ServeError<A>) + Send + 'static) -> Self {
        let on_error = OnError { on_error: Some(Box::new(on_error)), panics: Arc::default() };
        Self { state: State::Idle(on_error), dropped: 0 }
    }

    /// Reports an error without waiting. If the queue is full, the error is dropped and counted.
    pub(super) fn report(&mut self, error: ServeError<A>)
    where
        A: PeerAddr + Send + 'static,
    {
        if let State::Idle(_) = self.state {
            // Idle -> Running
            let State::Idle(on_error) = std::mem::replace(&mut self.state, State::Log) else {
                unreachable!("matched above")
            };
            self.state = State::Running(Worker::start(on_error));
        }
        // An error of a service is foreign code, too: it is printed or dropped here.
        match &self.state {
            State::Log => {
                contain(move || observe::serve_error(&error));
            }
            State::Running(worker) => {
                if let Err(rejected) = worker.queue.try_send(error) {
                    contain(move || drop(rejected));
                    self.dropped += 1;
                    observe::error_dropped();
                }
            }
            State::Idle(_) => unreachable!("replaced above"),
        }
    }

    /// Waits for the callback to handle what is queued, for at most a second. Returns how many errors were dropped and
    /// how often the callback panicked.
    pub(super) async fn finish(self) -> (usize, usize) {
        let panics = match self.state {
            State::Log => return (self.dropped, 0),
            State::Idle(on_error) => Arc::clone(&on_error.panics),
            State::Running(worker) => {
                drop(worker.queue);
                let _ = timeout(FLUSH_TIMEOUT, worker.finished).await;
                worker.panics
            }
        };
        (self.dropped, panics.load(Ordering::Relaxed))
    }
}

impl<A: Send + 'static> Worker<A> {
    fn start(mut on_error: OnError<A>) -> Self {
        let (queue, errors) = sync_channel(QUEUE_LEN);
        let (running, finished) = oneshot::channel::<()>();
        let panics = Arc::clone(&on_error.panics);
        let run = move || {
            for error in errors {
                on_error.call(error);
            }
            drop(on_error);
            drop(running);
        };
        // If no thread can be created the receiver is dropped, and every error counts as dropped.
        let _ = thread::Builder::new().name("tower-challenge-errors".to_owned()).spawn(run);
        Self { queue, panics, finished }
    }
}

impl<A> OnError<A> {
    fn call(&mut self, error: ServeError<A>) {
        if let Some(on_error) = &mut self.on_error {
            let called = contain(|| on_error(error));
            self.count(called);
        }
    }

    fn count(&self, outcome: Option<()>) {
        if outcome.is_none() {
            self.panics.fetch_add(1, Ordering::Relaxed);
            observe::callback_panicked();
        }
    }
}

impl<A> Drop for OnError<A> {
    fn drop(&mut self) {
        let on_error = self.on_error.take();
        let dropped = contain(move || drop(on_error));
        self.count(dropped);
    }
}
