use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::{Penalties, Throttled};
use crate::error::HandshakeErrorKind;
use crate::time::after;

/// How many expired entries an operation removes at most: more than the one that it adds, so that they do not
/// accumulate, and few, so that no operation takes long.
const MAX_REMOVED: usize = 4;

/// How many sources wait to be reported at most. If they are not taken, the oldest are forgotten.
const MAX_NEWS: usize = 1024;

/// The sources that have a remaining penalty.
#[derive(Debug)]
pub(super) struct Record {
    penalties: Penalties,
    entries: HashMap<IpNet, Entry>,
    // By the time at which the penalty ends: the sources that are not throttled, and those that are.
    unthrottled: BTreeSet<(Instant, IpNet)>,
    throttled: BTreeSet<(Instant, IpNet)>,
    // The sources that were throttled and not reported yet, the latest last.
    news: VecDeque<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Stays set until the penalty ends, even if the remaining penalty falls below the threshold.
    throttled: bool,
    end: Instant,
}

impl Record {
    pub(super) fn new(penalties: Penalties) -> Self {
        Self {
            penalties,
            entries: HashMap::new(),
            unthrottled: BTreeSet::new(),
            throttled: BTreeSet::new(),
            news: VecDeque::new(),
        }
    }

    pub(super) fn is_throttled(&mut self, net: IpNet, now: Instant) -> bool {
        self.remove_expired(now);
        self.entries.get(&net).is_some_and(|entry| entry.throttled && entry.end > now)
    }

    /// Returns the number of throttled sources.
    pub(super) fn throttled(&self, now: Instant) -> usize {
        self.throttled.iter().rev().take_while(|(end, _)| *end > now).count()
    }

    /// Adds the penalty for a failure of this kind, of a handshake that was in flight for this long.
    pub(super) fn add(&mut self, net: IpNet, kind: HandshakeErrorKind, in_flight: Duration, now: Instant) {
        let penalty = self.penalties.of(kind, in_flight);
        if penalty.is_zero() {
            return;
        }
        self.remove_expired(now);
        let before = self.remove(net).filter(|entry| entry.end > now);
        let remaining = before.map_or(Duration::ZERO, |entry| entry.end.saturating_duration_since(now));
        let (remaining, exceeded) = self.penalties.add(remaining, penalty);
        let was_throttled = before.is_some_and(|entry| entry.throttled);
        let entry = Entry { throttled: exceeded || was_throttled, end: after(now, remaining) };
        if self.insert(net, entry) && exceeded && !was_throttled {
            if self.news.len() == MAX_NEWS {
                self.news.pop_front();
            }
            self.news.push_back(net);
        }
    }

    /// Throttles a source for at least `remaining`. Returns whether there was a place for it.
    pub(super) fn throttle(&mut self, net: IpNet, remaining: Duration, now: Instant) -> bool {
        self.remove_expired(now);
        let end = after(now, remaining.min(self.penalties.max));
        let before = self.remove(net).map_or(end, |entry| entry.end);
        self.insert(net, Entry { throttled: true, end: end.max(before) })
    }

    /// Takes the sources that were throttled since the last call and still are.
    pub(super) fn take_news(&mut self, now: Instant) -> Vec<Throttled> {
        let news = std::mem::take(&mut self.news);
        let still = news.into_iter().filter_map(|source| {
            let entry = self.entries.get(&source).filter(|entry| entry.throttled)?;
            let remaining = entry.end.checked_duration_since(now).filter(|remaining| !remaining.is_zero())?;
            Some(Throttled { source, remaining })
        });
        still.collect()
    }

    /// Adds an entry for a source that has none. Returns whether there was a place for it.
    fn insert(&mut self, net: IpNet, entry: Entry) -> bool {
        if self.entries.len() == self.penalties.max_sources {
            // Remove the entry with the smallest remaining penalty. This may be the new one.
            let first = self.unthrottled.first().or(self.throttled.first());
            let &(_, first) = first.expect("`max_sources` is at least 1");
            if entry <= self.entries[&first] {
                return false;
            }
            self.remove(first);
        }
        self.entries.insert(net, entry);
        self.set_of(entry).insert((entry.end, net));
        true
    }

    fn remove_expired(&mut self, now: Instant) {
        for _ in 0..MAX_REMOVED {
            let firsts = [self.unthrottled.first(), self.throttled.first()];
            let Some(&(_, net)) = firsts.into_iter().flatten().find(|(end, _)| *end <= now) else { return };
            self.remove(net);
        }
    }

    fn remove(&mut self, net: IpNet) -> Option<Entry> {
        let entry = self.entries.remove(&net)?;
        self.set_of(entry).remove(&(entry.end, net));
        Some(entry)
    }

    /// Returns the set that the entry belongs to.
    fn set_of(&mut self, entry: Entry) -> &mut BTreeSet<(Instant, IpNet)> {
        if entry.throttled { &mut self.throttled } else { &mut self.unthrottled }
    }
}

#[cfg(test)]
mod tests {
    use HandshakeErrorKind::{Malformed, Refused, ShuttingDown, TimedOut, UnexpectedEof};

    use super::*;

    fn net(last: u8) -> IpNet {
        std::net::IpAddr::from([192, 0, 2, last]).into()
    }

    impl Record {
        /// Adds the penalty for a handshake that failed at once.
        fn fail(&mut self, net: IpNet, kind: HandshakeErrorKind, now: Instant) {
            self.add(net, kind, Duration::ZERO, now);
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn penalties_accumulate_and_expire() {
        let mut record = Record::new(Penalties::new());
        let begin = Instant::now();
        for _ in 0..3 {
            record.fail(net(1), Refused, begin);
            assert!(!record.is_throttled(net(1), begin), "not more than 15 seconds");
        }
        record.fail(net(1), UnexpectedEof, begin + secs(2));
        assert!(!record.is_throttled(net(1), begin + secs(2)), "13 + 1");
        record.fail(net(1), Refused, begin + secs(2));
        assert!(record.is_throttled(net(1), begin + secs(2)), "14 + 5");
        assert!(!record.is_throttled(net(2), begin + secs(2)), "another source");
        // Throttled until the penalty ends, not until it falls to the threshold.
        assert!(record.is_throttled(net(1), begin + secs(20)));
        assert_eq!(record.throttled(begin + secs(20)), 1);
        assert!(!record.is_throttled(net(1), begin + secs(21)));
        assert_eq!(record.throttled(begin + secs(21)), 0);
        assert!(record.entries.is_empty() && record.throttled.is_empty() && record.unthrottled.is_empty());
    }

    #[test]
    fn penalty_is_capped_and_own_faults_are_free() {
        let mut record = Record::new(Penalties::new().max(secs(30)));
        let begin = Instant::now();
        for _ in 0..100 {
            record.fail(net(1), TimedOut, begin);
            record.fail(net(1), Malformed, begin);
            record.fail(net(2), ShuttingDown, begin);
        }
        assert!(record.is_throttled(net(1), begin + secs(29)));
        assert!(!record.is_throttled(net(1), begin + secs(30)));
        assert!(record.entries.is_empty());
        let mut endless = Record::new(Penalties::new().refused(Duration::MAX).max(Duration::MAX));
        endless.fail(net(1), Refused, begin);
        endless.fail(net(1), Refused, begin);
        assert!(endless.is_throttled(net(1), begin + secs(1 << 29)));
    }

    #[test]
    fn full_record_drops_smallest_penalty_of_unthrottled_sources_first() {
        let begin = Instant::now();
        let mut record = Record::new(Penalties::new().max_sources(2));
        for _ in 0..4 {
            record.fail(net(1), Refused, begin); // 20 s: throttled
        }
        // 12 seconds later 8 seconds remain. Another source has 10 seconds, but is not throttled.
        record.fail(net(2), Malformed, begin + secs(12));
        record.fail(net(3), TimedOut, begin + secs(13));
        assert!(record.is_throttled(net(1), begin + secs(13)), "still throttled");
        let mut known: Vec<_> = record.entries.keys().copied().collect();
        known.sort();
        assert_eq!(known, [net(1), net(3)]);

        // A new source with the smallest penalty is not recorded at all.
        record.fail(net(4), UnexpectedEof, begin + secs(13));
        assert!(!record.entries.contains_key(&net(4)));
        // A source that is recorded already does not displace another one.
        record.fail(net(3), Refused, begin + secs(13));
        assert_eq!((record.entries.len(), record.unthrottled.len(), record.throttled.len()), (2, 1, 1));
    }

    /// Otherwise peers would close just before the deadline.
    #[test]
    fn early_close_costs_the_time_in_flight() {
        let penalties = Penalties::new();
        assert_eq!(penalties.of(UnexpectedEof, Duration::ZERO), secs(1));
        assert_eq!(penalties.of(UnexpectedEof, secs(9)), secs(9));
        assert_eq!(penalties.of(UnexpectedEof, secs(60)), secs(10), "no more than a timeout");
        assert_eq!(Penalties::new().timed_out(Duration::ZERO).of(UnexpectedEof, secs(9)), secs(1));
    }

    #[test]
    fn expired_entries_are_removed_in_small_batches() {
        let mut record = Record::new(Penalties::new().threshold(Duration::ZERO));
        let begin = Instant::now();
        for last in 0..100 {
            record.fail(net(last), Refused, begin);
        }
        assert_eq!(record.throttled(begin), 100);
        let later = begin + secs(5);
        assert_eq!(record.throttled(later), 0);
        assert!(!record.is_throttled(net(99), later));
        assert_eq!(record.entries.len(), 100 - MAX_REMOVED);
        assert!((0..24).all(|_| !record.is_throttled(net(0), later)));
        assert!(record.entries.is_empty());
    }
}
