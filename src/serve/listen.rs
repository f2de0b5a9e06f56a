use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};
use tokio_util::net::Listener;

use crate::transport::Transport;

/// The first pause after a failed accept, doubled with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The longest pause: a server that had no file descriptors left is back this soon after there are some.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A listener that is not put off by errors: it pauses, and goes on.
pub(super) struct Listen<L> {
    listener: L,
    next_pause: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<L: Listener<Io: Transport>> Listen<L> {
    pub(super) fn new(listener: L) -> Self {
        Self { listener, next_pause: FIRST_PAUSE, pause: None }
    }

    /// The next connection, ready to be used, or why there is none this time. Can be polled again after either.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(L::Io, L::Addr)>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let accepted = ready!(self.listener.poll_accept(cx));
        match &accepted {
            Ok(_) => self.next_pause = FIRST_PAUSE,
            Err(error) if concerns_one_connection(error) => {}
            // The listener stays ready while there is no file descriptor left: without a pause this would spin.
            Err(_) => {
                self.pause = Some(Box::pin(sleep(self.next_pause)));
                self.next_pause = LONGEST_PAUSE.min(self.next_pause * 2);
            }
        }
        Poll::Ready(accepted.and_then(|(io, addr)| io.set_nodelay().map(|()| (io, addr))))
    }
}

/// The connection was gone before it was accepted: nothing that a pause would help against.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
