//! The rate limit for log events of failures. Without it anyone who can connect could fill the disk.

use std::time::Duration;

use tokio::time::Instant;

use super::outcome::for_each_kind;
use crate::error::HandshakeErrorKind;
use crate::time::after;

/// The length of an interval.
const INTERVAL: Duration = Duration::from_secs(10);

/// How many failures of an interval get an event of their own: enough to see examples.
const MAX_EVENTS: u64 = 5;

/// The current interval. It begins with the first failure after the end of the previous interval.
#[derive(Debug, Default)]
pub(super) struct Interval {
    end: Option<Instant>,
    counts: Counts,
}

impl Interval {
    /// Counts a failure, and returns whether it gets an event of its own. Call [`close`](Self::close) first.
    pub(super) fn count(&mut self, failure: Failure, now: Instant) -> bool {
        self.end.get_or_insert_with(|| after(now, INTERVAL));
        self.counts.add(failure);
        !matches!(failure, Failure::Probe) && self.counts.total_without_probes() <= MAX_EVENTS
    }

    /// Ends the interval if its time has passed. Returns the counts if failures were suppressed.
    pub(super) fn close(&mut self, now: Instant) -> Option<Counts> {
        if self.end? > now { None } else { self.take() }
    }

    /// Ends the interval. Returns the counts if failures were suppressed.
    pub(super) fn take(&mut self) -> Option<Counts> {
        let Self { counts, .. } = std::mem::take(self);
        (counts.suppressed() > 0).then_some(counts)
    }
}

macro_rules! failures {
    ($($kind:ident $name:ident),*) => {
        /// The kinds of failures that are counted.
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Failure {
            Abandoned,
            $($kind,)*
        }

        impl From<HandshakeErrorKind> for Failure {
            fn from(kind: HandshakeErrorKind) -> Self {
                match kind {
                    $(HandshakeErrorKind::$kind => Self::$kind,)*
                }
            }
        }

        impl Failure {
            const ALL: usize = [Self::Abandoned, $(Self::$kind),*].len();
        }
    };
}
for_each_kind!(failures!());

/// The number of failures of each kind.
#[derive(Debug, Default)]
pub(super) struct Counts([u64; Failure::ALL]);

impl Counts {
    fn add(&mut self, failure: Failure) {
        self.0[failure as usize] += 1;
    }

    /// Returns the number of failures of this kind, if there are any.
    pub(super) fn of(&self, failure: Failure) -> Option<u64> {
        Some(self.0[failure as usize]).filter(|&count| count > 0)
    }

    pub(super) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns how many failures had no event of their own.
    pub(super) fn suppressed(&self) -> u64 {
        self.total_without_probes().saturating_sub(MAX_EVENTS)
    }

    /// Health checks and port scans are frequent and harmless: they neither use up the events of real failures nor
    /// cause a summary by themselves.
    fn total_without_probes(&self) -> u64 {
        self.total() - self.0[Failure::Probe as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_per_interval_have_an_event() {
        let mut interval = Interval::default();
        let begin = Instant::now();
        assert!(interval.close(begin).is_none(), "no interval has begun");
        let events = (0..8).filter(|_| interval.count(HandshakeErrorKind::Refused.into(), begin)).count();
        assert_eq!(events, 5);
        assert!(
            !interval.count(Failure::Abandoned, begin + INTERVAL / 2),
            "the interval begins with the first failure"
        );
        assert!(interval.close(begin + INTERVAL / 2).is_none());
        let counts = interval.close(begin + INTERVAL).unwrap();
        assert_eq!((counts.total(), counts.suppressed()), (9, 4));
        assert_eq!(counts.of(Failure::Refused), Some(8));
        assert_eq!(counts.of(Failure::Abandoned), Some(1));
        assert_eq!(counts.of(Failure::Io), None);
        // A new interval. Without suppressed failures there is no summary.
        assert!(interval.count(Failure::Io, begin + INTERVAL * 3));
        assert!(interval.close(begin + INTERVAL * 4).is_none());
        assert!(interval.take().is_none());
    }
}
