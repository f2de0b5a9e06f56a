use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::Penalties;
use crate::error::HandshakeErrorKind;
use crate::time::after;

/// How many that have served their time are forgotten at once: more than come, so that they do not pile up, and few, so
/// that nobody waits for it.
const FORGOTTEN_AT_ONCE: usize = 4;

/// Which sources have a penalty to serve.
#[derive(Debug)]
pub(super) struct Record {
    penalties: Penalties,
    entries: HashMap<IpNet, Entry>,
    // By when they have served it: those who are let in meanwhile, and those who are not.
    let_in: BTreeSet<(Instant, IpNet)>,
    kept_out: BTreeSet<(Instant, IpNet)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Over the threshold once, it is kept out until the end.
    kept_out: bool,
    end: Instant,
}

impl Record {
    pub(super) fn new(penalties: Penalties) -> Self {
        Self { penalties, entries: HashMap::new(), let_in: BTreeSet::new(), kept_out: BTreeSet::new() }
    }

    pub(super) fn is_penalized(&mut self, net: IpNet, now: Instant) -> bool {
        self.forget_served(now);
        self.entries.get(&net).is_some_and(|entry| entry.kept_out && entry.end > now)
    }

    /// How many sources are kept out.
    pub(super) fn penalized(&self, now: Instant) -> usize {
        self.kept_out.iter().rev().take_while(|(end, _)| *end > now).count()
    }

    /// Adds the penalty for a failure of this kind, of a handshake that was pending for so long.
    pub(super) fn add(&mut self, net: IpNet, kind: HandshakeErrorKind, pending: Duration, now: Instant) {
        let penalty = self.penalties.of(kind, pending);
        if penalty.is_zero() {
            return;
        }
        self.forget_served(now);
        let before = self.remove(net).filter(|entry| entry.end > now);
        let to_serve = before.map_or(Duration::ZERO, |entry| entry.end.saturating_duration_since(now));
        let (to_serve, too_much) = self.penalties.add(to_serve, penalty);
        let entry = Entry {
            kept_out: too_much || before.is_some_and(|entry| entry.kept_out),
            end: after(now, to_serve),
        };
        if self.entries.len() == self.penalties.max_sources {
            // Who has least to lose goes: perhaps the one that has just come.
            let first = self.let_in.first().or(self.kept_out.first());
            let &(_, first) = first.expect("there is room for at least one");
            if entry <= self.entries[&first] {
                return;
            }
            self.remove(first);
        }
        self.entries.insert(net, entry);
        self.with(entry).insert((entry.end, net));
    }

    fn forget_served(&mut self, now: Instant) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let firsts = [self.let_in.first(), self.kept_out.first()];
            let Some(&(_, net)) = firsts.into_iter().flatten().find(|(end, _)| *end <= now) else { return };
            self.remove(net);
        }
    }

    fn remove(&mut self, net: IpNet) -> Option<Entry> {
        let entry = self.entries.remove(&net)?;
        self.with(entry).remove(&(entry.end, net));
        Some(entry)
    }

    /// Those whom it is one of.
    fn with(&mut self, entry: Entry) -> &mut BTreeSet<(Instant, IpNet)> {
        if entry.kept_out { &mut self.kept_out } else { &mut self.let_in }
    }
}

#[cfg(test)]
mod tests {
    use HandshakeErrorKind::{ClosedEarly, Malformed, Refused, ShuttingDown, TimedOut};

    use super::*;

    fn net(last: u8) -> IpNet {
        std::net::IpAddr::from([192, 0, 2, last]).into()
    }

    impl Record {
        /// Of one that was over at once.
        fn fail(&mut self, net: IpNet, kind: HandshakeErrorKind, now: Instant) {
            self.add(net, kind, Duration::ZERO, now);
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn failures_add_up_and_time_takes_away() {
        let mut record = Record::new(Penalties::new());
        let begin = Instant::now();
        for _ in 0..3 {
            record.fail(net(1), Refused, begin);
            assert!(!record.is_penalized(net(1), begin), "not over 15 seconds");
        }
        record.fail(net(1), ClosedEarly, begin + secs(2));
        assert!(!record.is_penalized(net(1), begin + secs(2)), "13 + 1");
        record.fail(net(1), Refused, begin + secs(2));
        assert!(record.is_penalized(net(1), begin + secs(2)), "14 + 5");
        assert!(!record.is_penalized(net(2), begin + secs(2)), "another");
        // To the end of it, not down to the threshold.
        assert!(record.is_penalized(net(1), begin + secs(20)));
        assert_eq!(record.penalized(begin + secs(20)), 1);
        assert!(!record.is_penalized(net(1), begin + secs(21)));
        assert_eq!(record.penalized(begin + secs(21)), 0);
        assert!(record.entries.is_empty() && record.kept_out.is_empty() && record.let_in.is_empty());
    }

    #[test]
    fn never_more_than_the_most_and_nothing_for_what_it_can_t_help() {
        let mut record = Record::new(Penalties::new().max(secs(30)));
        let begin = Instant::now();
        for _ in 0..100 {
            record.fail(net(1), TimedOut, begin);
            record.fail(net(1), Malformed, begin);
            record.fail(net(2), ShuttingDown, begin);
        }
        assert!(record.is_penalized(net(1), begin + secs(29)));
        assert!(!record.is_penalized(net(1), begin + secs(30)));
        assert!(record.entries.is_empty());
        let mut endless = Record::new(Penalties::new().refused(Duration::MAX).max(Duration::MAX));
        endless.fail(net(1), Refused, begin);
        endless.fail(net(1), Refused, begin);
        assert!(endless.is_penalized(net(1), begin + secs(1 << 29)));
    }

    #[test]
    fn where_there_is_no_room_who_is_let_in_goes_before_who_is_kept_out_and_the_soonest_first() {
        let begin = Instant::now();
        let mut record = Record::new(Penalties::new().max_sources(2));
        for _ in 0..4 {
            record.fail(net(1), Refused, begin); // 20 s: kept out
        }
        // 12 seconds later 8 are left, and another has 10 to serve, but is let in.
        record.fail(net(2), Malformed, begin + secs(12));
        record.fail(net(3), TimedOut, begin + secs(13));
        assert!(record.is_penalized(net(1), begin + secs(13)), "kept out as before");
        let mut known: Vec<_> = record.entries.keys().copied().collect();
        known.sort();
        assert_eq!(known, [net(1), net(3)]);

        // And who has least is not taken in at all: it would be the first to go.
        record.fail(net(4), ClosedEarly, begin + secs(13));
        assert!(!record.entries.contains_key(&net(4)));
        // One that is known already needs no more room.
        record.fail(net(3), Refused, begin + secs(13));
        assert_eq!((record.entries.len(), record.let_in.len(), record.kept_out.len()), (2, 1, 1));
    }

    /// Else nobody would ever be timed out.
    #[test]
    fn who_goes_after_a_while_has_held_a_place_for_so_long() {
        let penalties = Penalties::new();
        assert_eq!(penalties.of(ClosedEarly, Duration::ZERO), secs(1));
        assert_eq!(penalties.of(ClosedEarly, secs(9)), secs(9));
        assert_eq!(penalties.of(ClosedEarly, secs(60)), secs(10), "no more than for staying");
        assert_eq!(Penalties::new().timed_out(Duration::ZERO).of(ClosedEarly, secs(9)), secs(1));
    }

    #[test]
    fn many_that_have_served_their_time_are_forgotten_bit_by_bit() {
        let mut record = Record::new(Penalties::new().threshold(Duration::ZERO));
        let begin = Instant::now();
        for last in 0..100 {
            record.fail(net(last), Refused, begin);
        }
        assert_eq!(record.penalized(begin), 100);
        let later = begin + secs(5);
        assert_eq!(record.penalized(later), 0);
        assert!(!record.is_penalized(net(99), later));
        assert_eq!(record.entries.len(), 100 - FORGOTTEN_AT_ONCE);
        assert!((0..24).all(|_| !record.is_penalized(net(0), later)));
        assert!(record.entries.is_empty());
    }
}
