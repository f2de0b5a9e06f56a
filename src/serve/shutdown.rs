use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a server ended: what became of the connections that were there at the signal, or had ended just before it. One whose
/// service has completed and whose stream lives on elsewhere is counted as both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Whose service came to its end.
    pub completed: usize,
    /// Whose service failed. With a [`ChallengeLayer`](crate::ChallengeLayer) those are among them whose handshake was
    /// pending, which end as [`ShuttingDown`](crate::HandshakeErrorKind::ShuttingDown).
    pub failed: usize,
    /// Whose service panicked.
    pub panicked: usize,
    /// That were aborted at the deadline, or at the second signal.
    pub aborted: usize,
    /// That were still there at the end, out of reach of an abort: the service had handed their stream on.
    pub detached: usize,
}

/// How long sessions are waited for before they are aborted: until the second signal, or the deadline.
pub(super) struct Patience {
    forced: Option<BoxFuture<()>>,
    deadline: Pin<Box<Sleep>>,
}

impl Patience {
    pub(super) fn new(forced: Option<BoxFuture<()>>, timeout: Duration) -> Self {
        Self { forced, deadline: Box::pin(sleep(timeout)) }
    }

    /// Whether it is used up. Not to be polled again then.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.forced.as_mut().is_some_and(|signal| signal.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        self.deadline.as_mut().poll(cx)
    }
}
