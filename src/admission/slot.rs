use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::source::Source;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::observe::{Failures, Held};
use crate::time::{after, poll_timer};

/// A place among the handshakes that are pending, given back when dropped: see
/// [`Admission::admit`](super::Admission::admit).
#[must_use = "dropping it gives the place back"]
pub struct Slot {
    shared: Arc<Shared>,
    source: Source,
    number: u64,
    // None once the place is given to somebody else.
    revoked: Option<oneshot::Receiver<()>>,
    since: Instant,
    proven: bool,
    _pending: Held,
}

impl Slot {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        number: u64,
        revoked: oneshot::Receiver<()>,
        since: Instant,
    ) -> Self {
        Self {
            shared,
            source,
            number,
            revoked: Some(revoked),
            since,
            proven: false,
            _pending: Held::pending(),
        }
    }

    /// Runs another handshake in this place, one of TLS say, before it goes on to
    /// [`accept_admitted`](crate::Acceptor::accept_admitted): within `timeout`, and until the place is given to
    /// somebody else. Where it fails, the source's penalty is that of the error.
    ///
    /// # Errors
    ///
    /// That of the handshake, as [`HandshakeError`] makes one of an [`io::Error`](std::io::Error);
    /// [`TimedOut`](HandshakeErrorKind::TimedOut); [`Shed`](HandshakeErrorKind::Shed). The place is given back.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that has its timer enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the handshake, and gives the place back.
    pub async fn guard<F, T, E>(
        mut self,
        timeout: Duration,
        handshake: F,
    ) -> Result<(T, Self), HandshakeError>
    where
        F: Future<Output = Result<T, E>>,
        E: Into<HandshakeError>,
    {
        let outcome = {
            let (mut handshake, mut deadline) =
                (pin!(handshake), pin!(sleep_until(after(Instant::now(), timeout))));
            poll_fn(|cx| {
                if let Poll::Ready(outcome) = handshake.as_mut().poll(cx) {
                    return Poll::Ready(outcome.map_err(Into::into));
                }
                if self.poll_revoked(cx).is_ready() {
                    return Poll::Ready(Err(HandshakeErrorKind::Shed.into()));
                }
                poll_timer(deadline.as_mut(), cx).map(|()| Err(HandshakeErrorKind::TimedOut.into()))
            })
            .await
        };
        match outcome {
            Ok(output) => Ok((output, self)),
            Err(error) => {
                self.failed(error.kind());
                Err(error)
            }
        }
    }

    /// Waits until the place is given to somebody else: the connection is to be dropped then. That adds no penalty;
    /// [`failed`](Self::failed) does.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn revoked(&mut self) {
        poll_fn(|cx| self.poll_revoked(cx)).await;
    }

    /// Gives the place back after a failure that happened elsewhere, in TLS say: the source's penalty, if there are
    /// any, is that of `kind`. Failures of a handshake that an [`Acceptor`](crate::Acceptor) runs are counted by it.
    pub fn failed(self, kind: HandshakeErrorKind) {
        self.shared.penalize(self.source, kind, self.since);
    }

    /// Also where the task has used up its budget: a peer that floods sees to that.
    pub(crate) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(revoked) = &mut self.revoked {
            // Told or dropped, it is the same.
            let _ = ready!(pin!(unconstrained(Pin::new(revoked))).poll(cx));
            self.revoked = None;
        }
        Poll::Ready(())
    }

    /// Nobody is to be woken by what follows.
    fn deafen(&mut self) {
        if let Some(revoked) = &mut self.revoked {
            revoked.close();
        }
    }

    /// Where its failure is counted for the log.
    pub(crate) fn failures(&self) -> &Failures {
        &self.shared.failures
    }

    /// The handshake has succeeded: it can't be shed any more, and counts as pending until it is dropped. Also where it
    /// has just been shed: the peer has been told that it is in.
    pub(crate) fn prove(&mut self) {
        self.deafen();
        self.proven = true;
        self.shared.table().prove(self.source, self.number);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.deafen();
        self.shared.table().release(self.source, self.number, self.proven);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("source", &self.source).finish_non_exhaustive()
    }
}
