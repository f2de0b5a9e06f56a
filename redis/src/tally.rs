//! What the values that were read have changed: in the metrics, and in a log that no number of them floods.

use metrics::counter;
use tower_challenge::KeyId;
use tracing::{debug, error, info, warn};

use crate::names;

/// How many ids of each outcome have a line of their own, unless the whole store is loaded.
const MAX_LINES: u64 = 20;

/// What came of a value, in the order of [`Tally::counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Changed,
    Revoked,
    /// An older version than the one that is known.
    Older,
    /// Known, and not in the store.
    Missing,
    Unreadable,
}

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Changed, "changed"),
    (Outcome::Revoked, "revoked"),
    (Outcome::Older, "older"),
    (Outcome::Missing, "missing"),
    (Outcome::Unreadable, "unreadable"),
];

#[derive(Default)]
pub(crate) struct Tally {
    counts: [u64; OUTCOMES.len()],
    /// One of the ids of each outcome.
    examples: [Option<KeyId>; OUTCOMES.len()],
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: Outcome, count: usize, id: &KeyId) {
        self.counts[outcome as usize] += count as u64;
        self.examples[outcome as usize].get_or_insert_with(|| id.clone());
    }

    /// Adds a value, and logs it unless there are too many.
    pub(crate) fn add_logged(&mut self, outcome: Outcome, id: &KeyId) {
        self.add(outcome, 1, id);
        if self.counts[outcome as usize] > MAX_LINES {
            return;
        }
        match outcome {
            Outcome::Changed => debug!(%id, "the keys have changed"),
            Outcome::Revoked => info!(%id, "revoked"),
            Outcome::Older => warn!(%id, "the store has gone back to an older version, which is ignored"),
            Outcome::Missing => warn!(%id, "a value is gone from the store; what was known of it stays"),
            Outcome::Unreadable => {
                error!(%id, "a value cannot be opened: it was changed, or sealed with another secret");
            }
        }
    }

    /// Counts the values in the metrics, and logs those that have no line of their own.
    pub(crate) fn finish(self, logged: bool) {
        for ((outcome, name), (count, example)) in
            OUTCOMES.into_iter().zip(self.counts.into_iter().zip(self.examples))
        {
            let Some(example) = example else { continue };
            counter!(names::VALUES, "outcome" => name).increment(count);
            if logged && count <= MAX_LINES {
                continue;
            }
            match outcome {
                Outcome::Changed | Outcome::Revoked => info!(count, %example, "values of the store: {name}"),
                _ => warn!(count, %example, "values of the store: {name}; what was known of them stays"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Counts lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    fn lines(count: u64, logged: bool) -> usize {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            let (mut tally, id) = (Tally::default(), KeyId::new("alice").unwrap());
            for _ in 0..count {
                for (outcome, _) in OUTCOMES {
                    if logged { tally.add_logged(outcome, &id) } else { tally.add(outcome, 1, &id) }
                }
            }
            tally.finish(logged);
        });
        lines.0.load(Ordering::Relaxed)
    }

    #[test]
    fn log_is_not_flooded() {
        assert_eq!(lines(3, true), 3 * OUTCOMES.len());
        // With the sum of each.
        assert_eq!(lines(100_000, true), 21 * OUTCOMES.len());
        // A load.
        assert_eq!(lines(100_000, false), OUTCOMES.len());
    }
}
