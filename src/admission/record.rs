use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::Penalties;
use crate::error::HandshakeErrorKind;
use crate::time::after;

/// Which sources have a penalty to serve.
#[derive(Debug)]
pub(super) struct Record {
    penalties: Penalties,
    entries: HashMap<IpNet, Entry>,
    // The first is to be forgotten first.
    by_end: BTreeSet<(Instant, IpNet)>,
    refused: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    end: Instant,
    /// Over the threshold once, it is refused until the end.
    refused: bool,
}

impl Record {
    pub(super) fn new(penalties: Penalties) -> Self {
        Self { penalties, entries: HashMap::new(), by_end: BTreeSet::new(), refused: 0 }
    }

    pub(super) fn is_penalized(&mut self, net: IpNet, now: Instant) -> bool {
        self.forget_served(now);
        self.entries.get(&net).is_some_and(|entry| entry.refused)
    }

    /// How many sources are refused.
    pub(super) fn penalized(&mut self, now: Instant) -> usize {
        self.forget_served(now);
        self.refused
    }

    pub(super) fn add(&mut self, net: IpNet, kind: HandshakeErrorKind, now: Instant) {
        let penalty = self.penalties.of(kind);
        if penalty.is_zero() {
            return;
        }
        self.forget_served(now);
        let before = self.remove(net);
        let to_serve = before.map_or(Duration::ZERO, |entry| entry.end - now);
        let (to_serve, too_much) = self.penalties.add(to_serve, penalty);
        let end = after(now, to_serve);
        if self.entries.len() == self.penalties.max_sources {
            let &(_, soonest) = self.by_end.first().expect("there are some");
            self.remove(soonest);
        }
        let refused = too_much || before.is_some_and(|entry| entry.refused);
        self.entries.insert(net, Entry { end, refused });
        self.by_end.insert((end, net));
        self.refused += usize::from(refused);
    }

    fn forget_served(&mut self, now: Instant) {
        while let Some(&(end, net)) = self.by_end.first()
            && end <= now
        {
            self.remove(net);
        }
    }

    fn remove(&mut self, net: IpNet) -> Option<Entry> {
        let entry = self.entries.remove(&net)?;
        self.by_end.remove(&(entry.end, net));
        self.refused -= usize::from(entry.refused);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use HandshakeErrorKind::{ClosedEarly, Malformed, Refused, ShuttingDown, TimedOut};

    use super::*;

    fn net(last: u8) -> IpNet {
        std::net::IpAddr::from([192, 0, 2, last]).into()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn failures_add_up_and_time_takes_away() {
        let mut record = Record::new(Penalties::new());
        let begin = Instant::now();
        for _ in 0..3 {
            record.add(net(1), Refused, begin);
            assert!(!record.is_penalized(net(1), begin), "not over 15 seconds");
        }
        record.add(net(1), ClosedEarly, begin + secs(2));
        assert!(!record.is_penalized(net(1), begin + secs(2)), "13 + 1");
        record.add(net(1), Refused, begin + secs(2));
        assert!(record.is_penalized(net(1), begin + secs(2)), "14 + 5");
        assert!(!record.is_penalized(net(2), begin + secs(2)), "another");
        // To the end of it, not down to the threshold.
        assert!(record.is_penalized(net(1), begin + secs(20)));
        assert_eq!(record.penalized(begin + secs(20)), 1);
        assert!(!record.is_penalized(net(1), begin + secs(21)));
        assert_eq!(record.penalized(begin + secs(21)), 0);
        assert!(record.entries.is_empty() && record.by_end.is_empty());
    }

    #[test]
    fn never_more_than_the_most_and_nothing_for_what_it_can_t_help() {
        let mut record = Record::new(Penalties::new().max(secs(30)));
        let begin = Instant::now();
        for _ in 0..100 {
            record.add(net(1), TimedOut, begin);
            record.add(net(1), Malformed, begin);
            record.add(net(2), ShuttingDown, begin);
        }
        assert!(record.is_penalized(net(1), begin + secs(29)));
        assert!(!record.is_penalized(net(1), begin + secs(30)));
        assert!(record.entries.is_empty());
        let mut endless = Record::new(Penalties::new().refused(Duration::MAX).max(Duration::MAX));
        endless.add(net(1), Refused, begin);
        endless.add(net(1), Refused, begin);
        assert!(endless.is_penalized(net(1), begin + secs(1 << 29)));
    }

    #[test]
    fn where_there_is_no_room_the_one_that_ends_soonest_is_forgotten() {
        let mut record = Record::new(Penalties::new().threshold(Duration::ZERO).max_sources(2));
        let begin = Instant::now();
        record.add(net(1), Malformed, begin);
        record.add(net(2), Refused, begin);
        record.add(net(3), Refused, begin + secs(1));
        let penalized = [1, 2, 3].map(|last| record.is_penalized(net(last), begin + secs(1)));
        assert_eq!(penalized, [true, false, true]);
        // One that is known already needs no more room.
        record.add(net(1), Refused, begin + secs(1));
        assert!(record.is_penalized(net(3), begin + secs(1)));
        assert_eq!((record.entries.len(), record.by_end.len(), record.refused), (2, 2, 2));
    }
}
