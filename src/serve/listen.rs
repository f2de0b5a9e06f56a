use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};
use tokio_util::net::Listener;

/// The pause after a failed accept. It doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The longest pause: how soon a server recovers from a lack of file descriptors.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A listener that continues after errors, with a pause if needed.
pub(super) struct Listen<L> {
    listener: L,
    next_pause: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<L: Listener> Listen<L> {
    pub(super) fn new(listener: L) -> Self {
        Self { listener, next_pause: FIRST_PAUSE, pause: None }
    }

    /// Accepts the next connection. Can be polled again after an error.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(L::Io, L::Addr)>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let accepted = ready!(self.listener.poll_accept(cx));
        match &accepted {
            Ok(_) => self.next_pause = FIRST_PAUSE,
            Err(error) if concerns_one_connection(error) => {}
            // The listener stays ready while there is no file descriptor: without a pause this would spin.
            Err(_) => {
                self.pause = Some(Box::pin(sleep(self.next_pause)));
                self.next_pause = LONGEST_PAUSE.min(self.next_pause * 2);
            }
        }
        Poll::Ready(accepted)
    }
}

/// Whether the connection was closed before it was accepted, so that a pause would not help.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
