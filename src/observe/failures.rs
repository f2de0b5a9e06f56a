//! Which failures get a line of their own in the log: a few an interval, or whoever can connect could fill the disk.

use std::time::Duration;

use tokio::time::Instant;

use super::outcome::for_each_kind;
use crate::error::HandshakeErrorKind;
use crate::time::after;

/// How long failures are counted together.
const INTERVAL: Duration = Duration::from_secs(10);

/// How many of an interval get a line of their own: enough to see an example.
const LINES: u64 = 5;

/// The interval that began with the first failure since the last one was over.
#[derive(Debug, Default)]
pub(super) struct Interval {
    end: Option<Instant>,
    counts: Counts,
}

impl Interval {
    /// Counts one more, and says whether it gets a line of its own. What is over is to be [closed](Self::close)
    /// first.
    pub(super) fn count(&mut self, failure: Failure, now: Instant) -> bool {
        self.end.get_or_insert_with(|| after(now, INTERVAL));
        self.counts.add(failure);
        self.counts.total() <= LINES
    }

    /// What is left to be said of an interval that is over.
    pub(super) fn close(&mut self, now: Instant) -> Option<Counts> {
        if self.end? > now { None } else { self.take() }
    }

    /// What is left to be said: nothing where every failure had its line.
    pub(super) fn take(&mut self) -> Option<Counts> {
        let Self { counts, .. } = std::mem::take(self);
        (counts.suppressed() > 0).then_some(counts)
    }
}

macro_rules! failures {
    ($($kind:ident $name:ident),*) => {
        /// A failure, to be counted.
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

/// How many of each.
#[derive(Debug, Default)]
pub(super) struct Counts([u64; Failure::ALL]);

impl Counts {
    fn add(&mut self, failure: Failure) {
        self.0[failure as usize] += 1;
    }

    /// How many of this one, if any.
    pub(super) fn of(&self, failure: Failure) -> Option<u64> {
        Some(self.0[failure as usize]).filter(|&count| count > 0)
    }

    pub(super) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many had no line of their own.
    pub(super) fn suppressed(&self) -> u64 {
        self.total().saturating_sub(LINES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_have_a_line_and_the_rest_a_number() {
        let mut interval = Interval::default();
        let begin = Instant::now();
        assert!(interval.close(begin).is_none(), "nothing has begun");
        let lines = (0..8).filter(|_| interval.count(HandshakeErrorKind::Refused.into(), begin)).count();
        assert_eq!(lines, 5);
        assert!(!interval.count(Failure::Abandoned, begin + INTERVAL / 2), "it begins with the first");
        assert!(interval.close(begin + INTERVAL / 2).is_none());
        let counts = interval.close(begin + INTERVAL).unwrap();
        assert_eq!((counts.total(), counts.suppressed()), (9, 4));
        assert_eq!(counts.of(Failure::Refused), Some(8));
        assert_eq!(counts.of(Failure::Abandoned), Some(1));
        assert_eq!(counts.of(Failure::Io), None);
        // All over again, and nothing to say of what has had its line.
        assert!(interval.count(Failure::Io, begin + INTERVAL * 3));
        assert!(interval.close(begin + INTERVAL * 4).is_none());
        assert!(interval.take().is_none());
    }
}
