use std::time::Duration;

use crate::error::HandshakeErrorKind;

/// How long a source that fails is kept out, in the manner of OpenSSH's `PerSourcePenalties` (9.8 and newer), and
/// with its figures where it has any.
///
/// Each failure adds its time to what the source has to serve, and time passes by itself. Once that is more than the
/// [`threshold`](Self::threshold), everything of this source is refused, before any work is done for it, until it has
/// served all of it. A success changes nothing: one key must not buy attempts at others.
///
/// Penalties hit everybody behind one address, so they are for those who ask for them: see
/// [`AdmissionBuilder::penalties`](super::AdmissionBuilder::penalties), and
/// [`exempt`](super::AdmissionBuilder::exempt) for those who must never be kept out.
#[derive(Clone, Debug)]
pub struct Penalties {
    refused: Duration,
    timed_out: Duration,
    malformed: Duration,
    closed_early: Duration,
    shed: Duration,
    threshold: Duration,
    max: Duration,
    pub(super) max_sources: usize,
}

impl Penalties {
    /// The default penalties.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            refused: Duration::from_secs(5),
            timed_out: Duration::from_secs(10),
            malformed: Duration::from_secs(10),
            closed_early: Duration::from_secs(1),
            shed: Duration::ZERO,
            threshold: Duration::from_secs(15),
            max: Duration::from_secs(600),
            max_sources: 65_536,
        }
    }

    /// Sets what a proof adds that did not convince ([`Refused`](HandshakeErrorKind::Refused)). Default: 5 seconds.
    #[must_use]
    pub const fn refused(mut self, penalty: Duration) -> Self {
        self.refused = penalty;
        self
    }

    /// Sets what a handshake adds that was not over in time ([`TimedOut`](HandshakeErrorKind::TimedOut)).
    /// Default: 10 seconds.
    #[must_use]
    pub const fn timed_out(mut self, penalty: Duration) -> Self {
        self.timed_out = penalty;
        self
    }

    /// Sets what a peer adds that does not speak this wire ([`Malformed`](HandshakeErrorKind::Malformed)).
    /// Default: 10 seconds.
    #[must_use]
    pub const fn malformed(mut self, penalty: Duration) -> Self {
        self.malformed = penalty;
        self
    }

    /// Sets what a peer adds that goes before the end ([`ClosedEarly`](HandshakeErrorKind::ClosedEarly)): scanners, and
    /// the health checks of many a load balancer. Default: 1 second. Who had been there for longer has as much added as
    /// it was there, up to what [`timed_out`](Self::timed_out) adds.
    #[must_use]
    pub const fn closed_early(mut self, penalty: Duration) -> Self {
        self.closed_early = penalty;
        self
    }

    /// Sets what a handshake adds that was ended in favour of another source ([`Shed`](HandshakeErrorKind::Shed)).
    /// Default: nothing.
    ///
    /// Two seconds, say, help against a flood from the same addresses again and again: who comes as soon as it is
    /// dropped soon costs a close, and no handshake. But friends are shed in a crowd, too, and against bursts from
    /// addresses that are always new it keeps out none but them: see the figures in the [module](super).
    #[must_use]
    pub const fn shed(mut self, penalty: Duration) -> Self {
        self.shed = penalty;
        self
    }

    /// Sets beyond how much a source is refused. Default: 15 seconds.
    #[must_use]
    pub const fn threshold(mut self, threshold: Duration) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets how much a source can have to serve at most. Default: 10 minutes. Where it is no more than the
    /// [`threshold`](Self::threshold), nobody is ever kept out.
    #[must_use]
    pub const fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Sets how many sources are remembered, at about 150 bytes each. Default: 65,536.
    ///
    /// Where there is no more room, the one is forgotten that has least to serve: of those that are let in, and only if
    /// there is none, of those that are kept out.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    pub const fn max_sources(mut self, max: usize) -> Self {
        assert!(max > 0, "room for at least one source");
        self.max_sources = max;
        self
    }

    /// What a failure of this kind adds, of a handshake that was pending for so long.
    pub(super) fn of(&self, kind: HandshakeErrorKind, pending: Duration) -> Duration {
        match kind {
            HandshakeErrorKind::Refused => self.refused,
            HandshakeErrorKind::TimedOut => self.timed_out,
            HandshakeErrorKind::Malformed => self.malformed,
            // Or it would be cheaper to go just before the deadline, and come again.
            HandshakeErrorKind::ClosedEarly => self.closed_early.max(pending.min(self.timed_out)),
            HandshakeErrorKind::Shed => self.shed,
            // The peer can't help it.
            _ => Duration::ZERO,
        }
    }

    /// How much there is to serve, `penalty` later; and whether that is too much.
    pub(super) fn add(&self, to_serve: Duration, penalty: Duration) -> (Duration, bool) {
        let to_serve = to_serve.saturating_add(penalty).min(self.max);
        (to_serve, to_serve > self.threshold)
    }
}

impl Default for Penalties {
    fn default() -> Self {
        Self::new()
    }
}
