use std::fmt;
use std::future::poll_fn;
use std::net::IpAddr;
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

/// A slot of an in-flight handshake, from [`Admission::admit`](super::Admission::admit). Dropping it releases it; see
/// [`release`](Self::release).
///
/// An [`Acceptor`](crate::Acceptor) takes a slot itself. Take one yourself to include another handshake, such as that
/// of TLS: see the [module documentation](super).
#[must_use = "dropping a slot releases it"]
pub struct Slot {
    shared: Arc<Shared>,
    source: Source,
    number: u64,
    // `None` after the eviction has been observed.
    evicted: Option<oneshot::Receiver<()>>,
    since: Instant,
    proven: bool,
    // Whether the source is to be charged if the slot is dropped now.
    is_open: bool,
    _pending: Held,
}

impl Slot {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        number: u64,
        evicted: oneshot::Receiver<()>,
        since: Instant,
    ) -> Self {
        Self {
            shared,
            source,
            number,
            evicted: Some(evicted),
            since,
            proven: false,
            is_open: true,
            _pending: Held::pending(),
        }
    }

    /// Runs another handshake in this slot, e.g. that of TLS, until it completes, `timeout` passes or the slot is
    /// evicted. Continue with [`accept_admitted`](crate::Acceptor::accept_admitted).
    ///
    /// # Errors
    ///
    /// Each error releases the slot and adds the penalty of its kind to the source.
    ///
    /// - The error of the handshake, converted to a [`HandshakeError`]. `From` is implemented for
    ///   [`io::Error`](std::io::Error).
    /// - [`TimedOut`](HandshakeErrorKind::TimedOut) if `timeout` passes.
    /// - [`Evicted`](HandshakeErrorKind::Evicted) if the slot is evicted.
    ///
    /// # Panics
    ///
    /// Panics when polled outside a tokio runtime with the time driver enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the handshake and releases the slot.
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
                if self.poll_evicted(cx).is_ready() {
                    return Poll::Ready(Err(HandshakeErrorKind::Evicted.into()));
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

    /// Waits until the slot is evicted. The caller must drop the connection then.
    ///
    /// This does not add a penalty. [`failed`](Self::failed) does.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn evicted(&mut self) {
        poll_fn(|cx| self.poll_evicted(cx)).await;
    }

    /// Releases the slot after a failure outside of an [`Acceptor`](crate::Acceptor), e.g. of TLS, and adds the penalty
    /// of `kind` to the source. An `Acceptor` does this itself for its handshakes.
    pub fn failed(mut self, kind: HandshakeErrorKind) {
        self.charge(kind);
    }

    /// Releases the slot without a penalty, e.g. after a success outside of an [`Acceptor`](crate::Acceptor).
    ///
    /// A slot that is dropped otherwise counts as abandoned: the source gets the penalty of a connection that was
    /// closed after the same time. Otherwise a timeout around the handshake would make failures free.
    pub fn release(mut self) {
        self.is_open = false;
    }

    /// Adds the penalty of `kind` to the source, once.
    fn charge(&mut self, kind: HandshakeErrorKind) {
        if std::mem::take(&mut self.is_open) {
            self.shared.penalize(self.source, kind, self.since);
        }
    }

    /// Marks the handshake as refused. The penalty is added now, not when the peer has read its verdict, and the slot
    /// is the first to be evicted.
    pub(crate) fn refuse(&mut self, kind: HandshakeErrorKind) {
        if self.is_open {
            self.charge(kind);
            self.shared.table().linger(self.source, self.number);
        }
    }

    /// Moves the slot to the source of `ip`, with its age, if that is another one.
    pub(crate) fn set_source(&mut self, ip: Option<IpAddr>) -> Result<(), HandshakeError> {
        let source = self.shared.sources.of(ip);
        if source == self.source {
            return Ok(());
        }
        let from = std::mem::replace(&mut self.source, source);
        let moved = self.shared.table().set_source(from, self.number, source);
        if self.shared.is_throttled(source, Instant::now()) {
            return Err(HandshakeErrorKind::Throttled.into());
        }
        moved.map_err(Into::into)
    }

    /// Returns `Ready` once the slot is evicted.
    ///
    /// Ignores tokio's task budget: a peer that sends without pause exhausts it, and could never be evicted then.
    pub(crate) fn poll_evicted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(evicted) = &mut self.evicted {
            // A closed channel means the same as a message.
            let _ = ready!(pin!(unconstrained(Pin::new(evicted))).poll(cx));
            self.evicted = None;
        }
        Poll::Ready(())
    }

    /// Closes the channel, so that an eviction no longer wakes this task.
    fn close(&mut self) {
        if let Some(evicted) = &mut self.evicted {
            evicted.close();
        }
    }

    /// Returns the counters for rate-limited logging of failures.
    pub(crate) fn failures(&self) -> &Failures {
        &self.shared.failures
    }

    /// Marks the handshake as successful. It can no longer be evicted, and counts as in flight until the slot is
    /// dropped. This holds even if it was evicted just before, since the peer has received its verdict already.
    pub(crate) fn prove(&mut self) {
        self.close();
        self.proven = true;
        self.is_open = false;
        self.shared.table().prove(self.source, self.number);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.close();
        let was_evicted = self.shared.table().release(self.source, self.number, self.proven);
        // An eviction is not the peer's fault, even if this side drops the handshake before it observes the eviction.
        self.charge(if was_evicted {
            HandshakeErrorKind::Evicted
        } else {
            HandshakeErrorKind::UnexpectedEof
        });
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("source", &self.source).finish_non_exhaustive()
    }
}
