use std::time::Duration;

use crate::error::HandshakeErrorKind;

/// How long a source that fails is kept out, in the manner of OpenSSH's `PerSourcePenalties` and with its figures.
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
            shed: Duration::from_secs(2),
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
    /// the health checks of many a load balancer. Default: 1 second.
    #[must_use]
    pub const fn closed_early(mut self, penalty: Duration) -> Self {
        self.closed_early = penalty;
        self
    }

    /// Sets what a handshake adds that was ended in favour of another source ([`Shed`](HandshakeErrorKind::Shed)).
    /// Default: 2 seconds.
    ///
    /// Where the cap is full, whoever comes again as soon as it is dropped costs a handshake each time. With this it
    /// soon costs no more than a close, and the friend who was shed once in the crowd has nothing to fear.
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

    /// Sets how much a source can have to serve at most. Default: 10 minutes.
    #[must_use]
    pub const fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Sets how many sources are remembered, at about 150 bytes each. Default: 65,536.
    ///
    /// Where there is no more room, the one is forgotten that would be let in again soonest.
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

    /// What a failure of this kind adds.
    pub(super) const fn of(&self, kind: HandshakeErrorKind) -> Duration {
        match kind {
            HandshakeErrorKind::Refused => self.refused,
            HandshakeErrorKind::TimedOut => self.timed_out,
            HandshakeErrorKind::Malformed => self.malformed,
            HandshakeErrorKind::ClosedEarly => self.closed_early,
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
