use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a server stopped: what happened to the connections that were open at the shutdown signal, and to the callback for
/// errors.
///
/// A connection whose service has returned while its stream lives on elsewhere is counted twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Connections whose service returned `Ok`.
    pub completed: usize,
    /// Connections whose service returned an error. With a [`ChallengeLayer`](crate::ChallengeLayer) this includes
    /// the handshakes that were in flight and ended as [`ShuttingDown`](crate::HandshakeErrorKind::ShuttingDown).
    pub failed: usize,
    /// Connections whose service panicked.
    pub panicked: usize,
    /// Connections that were aborted at the deadline or at the second signal.
    pub aborted: usize,
    /// Connections that were still open at the end and could not be aborted, because the service had passed on their
    /// stream.
    pub detached: usize,
    /// Errors that [`on_error`](super::Serve::on_error) did not receive, since too many were waiting for it. Counted
    /// since the server started.
    pub errors_dropped: usize,
    /// Panics of the callback `on_error`. Counted since the server started.
    pub callback_panics: usize,
}

/// How long open sessions may continue before they are aborted: until the deadline or the second signal.
pub(super) struct GracePeriod {
    forced: Option<BoxFuture<()>>,
    deadline: Pin<Box<Sleep>>,
}

impl GracePeriod {
    pub(super) fn new(forced: Option<BoxFuture<()>>, timeout: Duration) -> Self {
        Self { forced, deadline: Box::pin(sleep(timeout)) }
    }

    /// Ready at the end. Not to be polled again after that.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.forced.as_mut().is_some_and(|signal| signal.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        self.deadline.as_mut().poll(cx)
    }
}
