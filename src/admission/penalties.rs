use std::time::Duration;

use crate::error::HandshakeErrorKind;

/// Penalties for sources that fail, like OpenSSH's `PerSourcePenalties` (9.8 and newer) and with its default values
/// where it has any.
///
/// Each failure adds its penalty to the remaining penalty of the source, which decreases as time passes. When it
/// exceeds the [`threshold`](Self::threshold), the source is throttled: all its handshakes are rejected, before any
/// work is done for them, until its remaining penalty is zero. Handshakes that are already in flight continue. A success
/// changes nothing, so that a valid key cannot pay for attempts at other keys.
///
/// A proof is charged when it is rejected, not when the refused peer closes the connection. A handshake that is dropped
/// before it ends, e.g. by a timeout around it, is charged like one that the peer closes. Each handshake is charged once,
/// and none is charged for a shutdown.
///
/// A failure of the peer's making costs at least the time for which its handshake was in flight, up to the penalty of
/// [`timed_out`](Self::timed_out). This includes connections that fail with an I/O error
/// ([`Io`](HandshakeErrorKind::Io)), which have no penalty of their own.
///
/// Penalties affect all clients that share an address, so they are off by default: see
/// [`AdmissionBuilder::penalties`](super::AdmissionBuilder::penalties). Use
/// [`AdmissionBuilder::exempt`](super::AdmissionBuilder::exempt) for sources that must never be throttled.
///
/// ```
/// use std::time::Duration;
/// use tower_challenge::admission::{Admission, Penalties};
///
/// let penalties = Penalties::new()
///     .refused(Duration::from_secs(30))
///     .threshold(Duration::from_secs(60));
/// let admission = Admission::builder().penalties(penalties).build()?;
/// # Ok::<(), tower_challenge::admission::AdmissionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Penalties {
    refused: Duration,
    timed_out: Duration,
    malformed: Duration,
    unexpected_eof: Duration,
    probe: Duration,
    evicted: Duration,
    threshold: Duration,
    pub(super) max: Duration,
    pub(super) max_sources: usize,
}

impl Penalties {
    /// Creates the default penalties.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            refused: Duration::from_secs(5),
            timed_out: Duration::from_secs(10),
            malformed: Duration::from_secs(10),
            unexpected_eof: Duration::from_secs(1),
            probe: Duration::ZERO,
            evicted: Duration::ZERO,
            threshold: Duration::from_secs(15),
            max: Duration::from_secs(600),
            max_sources: 65_536,
        }
    }

    /// Sets the penalty for a proof that was rejected ([`Refused`](HandshakeErrorKind::Refused)). Default: 5 seconds.
    #[must_use]
    pub const fn refused(mut self, penalty: Duration) -> Self {
        self.refused = penalty;
        self
    }

    /// Sets the penalty for a handshake that exceeded its deadline ([`TimedOut`](HandshakeErrorKind::TimedOut)).
    /// Default: 10 seconds.
    #[must_use]
    pub const fn timed_out(mut self, penalty: Duration) -> Self {
        self.timed_out = penalty;
        self
    }

    /// Sets the penalty for an invalid message ([`Malformed`](HandshakeErrorKind::Malformed)). Default: 10 seconds.
    #[must_use]
    pub const fn malformed(mut self, penalty: Duration) -> Self {
        self.malformed = penalty;
        self
    }

    /// Sets the minimum penalty for a peer that closes the connection before the handshake completes
    /// ([`UnexpectedEof`](HandshakeErrorKind::UnexpectedEof)). Default: 1 second.
    ///
    /// A handshake that this side abandons, because a timeout around it passes, costs
    /// the same.
    #[must_use]
    pub const fn unexpected_eof(mut self, penalty: Duration) -> Self {
        self.unexpected_eof = penalty;
        self
    }

    /// Sets the minimum penalty for a peer that closes the connection without having sent anything
    /// ([`Probe`](HandshakeErrorKind::Probe)): port scanners, and the health checks of load balancers. Default: zero.
    #[must_use]
    pub const fn probe(mut self, penalty: Duration) -> Self {
        self.probe = penalty;
        self
    }

    /// Sets the penalty for a handshake that was evicted ([`Evicted`](HandshakeErrorKind::Evicted)). Default: zero.
    ///
    /// A penalty of e.g. 2 seconds helps against a flood that comes from the same addresses again and again: a source
    /// that reconnects after each eviction is soon throttled, and then costs a closed connection rather than a
    /// handshake. But legitimate clients are evicted in a flood as well. If the flood comes from addresses that are
    /// always new, this penalty throttles only legitimate clients: see the table in the [module documentation](super).
    #[must_use]
    pub const fn evicted(mut self, penalty: Duration) -> Self {
        self.evicted = penalty;
        self
    }

    /// Sets the remaining penalty above which a source is throttled. Default: 15 seconds.
    #[must_use]
    pub const fn threshold(mut self, threshold: Duration) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets the maximum of the remaining penalty of a source. Default: 10 minutes. If it does not exceed the
    /// [`threshold`](Self::threshold), no source is ever throttled.
    #[must_use]
    pub const fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Sets how many sources are recorded, at about 150 bytes each. Default: 65,536.
    ///
    /// When the record is full, the source with the smallest remaining penalty is removed: one that is not throttled,
    /// if there is any.
    #[must_use]
    pub const fn max_sources(mut self, max: usize) -> Self {
        self.max_sources = max;
        self
    }

    /// Returns the penalty for a failure of this kind, of a handshake that was in flight for this long.
    pub(super) fn of(&self, kind: HandshakeErrorKind, in_flight: Duration) -> Duration {
        // Otherwise failing on purpose just before the deadline, and reconnecting, would be cheaper than a timeout.
        let at_least = in_flight.min(self.timed_out);
        match kind {
            HandshakeErrorKind::Refused => self.refused.max(at_least),
            HandshakeErrorKind::TimedOut => self.timed_out,
            HandshakeErrorKind::Malformed => self.malformed.max(at_least),
            HandshakeErrorKind::UnexpectedEof => self.unexpected_eof.max(at_least),
            HandshakeErrorKind::Probe => self.probe.max(at_least),
            HandshakeErrorKind::Io => at_least,
            HandshakeErrorKind::Evicted => self.evicted,
            // The peer is not at fault.
            _ => Duration::ZERO,
        }
    }

    /// Adds `penalty` to the remaining penalty of a source. Also returns whether the sum exceeds the threshold.
    pub(super) fn add(&self, remaining: Duration, penalty: Duration) -> (Duration, bool) {
        let remaining = remaining.saturating_add(penalty).min(self.max);
        (remaining, remaining > self.threshold)
    }
}

impl Default for Penalties {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_on_purpose_costs_at_least_its_time() {
        use HandshakeErrorKind::{Io, Malformed, Probe, Refused, UnexpectedEof};

        let penalties = Penalties::new().malformed(Duration::ZERO);
        for kind in [Io, Malformed, Probe, Refused, UnexpectedEof] {
            let almost = Duration::from_millis(9_900);
            assert_eq!(penalties.of(kind, almost), almost, "{kind:?}");
            let hour = Duration::from_secs(3600);
            assert_eq!(penalties.of(kind, hour), Duration::from_secs(10), "{kind:?}");
        }
        assert_eq!(penalties.of(Refused, Duration::ZERO), Duration::from_secs(5));
        assert_eq!(penalties.of(HandshakeErrorKind::KeySource, Duration::from_secs(9)), Duration::ZERO);
    }
}
