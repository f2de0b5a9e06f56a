use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::task::coop::unconstrained;

use super::Shared;
use super::source::Source;
use crate::error::HandshakeErrorKind;
use crate::observe::{Failures, Held};

/// A place among the handshakes that are pending, given back when dropped: see [`Admission::admit`](super::Admission::admit).
#[must_use = "dropping it gives the place back"]
pub struct Slot {
    shared: Arc<Shared>,
    source: Source,
    number: u64,
    shed: oneshot::Receiver<()>,
    proven: bool,
    _pending: Held,
}

impl Slot {
    pub(super) fn new(shared: Arc<Shared>, source: Source, number: u64, shed: oneshot::Receiver<()>) -> Self {
        Self { shared, source, number, shed, proven: false, _pending: Held::pending() }
    }

    /// Waits until the place is given to somebody else: the connection is to be dropped then.
    ///
    /// Not to be called again after it has returned.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn shed(&mut self) {
        poll_fn(|cx| self.poll_shed(cx)).await;
    }

    /// Gives the place back after a failure that happened elsewhere, in TLS say: the source's penalty, if there are
    /// any, is that of `kind`. Failures of a handshake that an [`Acceptor`](crate::Acceptor) runs are counted by it.
    pub fn failed(self, kind: HandshakeErrorKind) {
        self.shared.penalize(self.source, kind);
    }

    /// Also where the task has used up its budget: a peer that floods sees to that.
    pub(crate) fn poll_shed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(Pin::new(&mut self.shed))).poll(cx).map(|_| ())
    }

    /// Where its failure is counted for the log.
    pub(crate) fn failures(&self) -> &Failures {
        &self.shared.failures
    }

    /// The handshake has succeeded: it can't be shed any more, and counts as pending until it is dropped.
    pub(crate) fn prove(&mut self) {
        // Nobody is to be woken by what follows.
        self.shed.close();
        self.proven = self.shared.table().prove(self.source, self.number);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Nobody is to be woken by what follows.
        self.shed.close();
        self.shared.table().release(self.source, self.number, self.proven);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("source", &self.source).finish_non_exhaustive()
    }
}
