use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;
use std::time::Duration;

use tokio::sync::oneshot;

use super::source::Source;
use crate::error::HandshakeErrorKind;

/// Which handshakes are pending: how many of each source, and which is to go first.
///
/// A source is as large as the time is long for which its pending handshakes have been pending, all together. By their
/// number alone two quick friends behind one address would be larger than a stranger who has been silent for seconds.
#[derive(Debug)]
pub(super) struct Table {
    max_pending: usize,
    max_per_source: u32,
    // Those that can be shed, oldest first within each source.
    pending: BTreeMap<(Source, u64), Pending>,
    held: HashMap<Source, Held>,
    // The sources by how many they have pending, and the largest of each number first: time changes nothing in that.
    ranks: BTreeSet<Rank>,
    len: usize,
    next: u64,
    // In microseconds. Of two threads the one with the later time may be here first.
    last: u64,
}

#[derive(Debug)]
struct Pending {
    tell: oneshot::Sender<()>,
    /// In microseconds.
    begin: u64,
}

/// What a source holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// All that count.
    all: u32,
    /// Those that can be shed.
    pending: u32,
    /// When those began, added up, in microseconds.
    begins: u64,
    /// The number of the oldest of them.
    oldest: u64,
}

/// By number, and of the sources with as many: the sooner those began, the larger it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    pending: u32,
    begins: u64,
    oldest: u64,
    source: Source,
}

impl Held {
    fn rank(self, source: Source) -> Rank {
        Rank { pending: self.pending, begins: self.begins, oldest: self.oldest, source }
    }
}

/// So many that half a million years can be told.
fn micros(since: Duration) -> u64 {
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// A handshake that may begin.
pub(super) struct Admitted {
    pub(super) number: u64,
    pub(super) revoked: oneshot::Receiver<()>,
    /// Who has to go in exchange: to be told once the table is not locked any more, since that wakes a task.
    pub(super) victim: Option<oneshot::Sender<()>>,
}

impl Table {
    pub(super) fn new(max_pending: usize, max_per_source: usize) -> Self {
        Self {
            max_pending,
            max_per_source: max_per_source.try_into().unwrap_or(u32::MAX),
            pending: BTreeMap::new(),
            held: HashMap::new(),
            ranks: BTreeSet::new(),
            len: 0,
            next: 0,
            last: 0,
        }
    }

    /// How many hold a slot.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets a handshake begin `now`, counted from whenever.
    pub(super) fn admit(&mut self, source: Source, now: Duration) -> Result<Admitted, HandshakeErrorKind> {
        let held = self.held.get(&source).map_or(0, |held| held.all);
        if source.limited().is_some() && held >= self.max_per_source {
            return Err(HandshakeErrorKind::OverShare);
        }
        let number = self.next;
        self.next += 1;
        let (tell, revoked) = oneshot::channel();
        self.last = self.last.max(micros(now));
        self.insert(source, number, Pending { tell, begin: self.last });
        let victim = if self.len > self.max_pending { self.shed_oldest_of_largest() } else { None };
        match victim {
            // All the others have proven themselves: there is nobody to make room.
            Some((victim, _)) if victim == number => Err(HandshakeErrorKind::Overloaded),
            victim => Ok(Admitted { number, revoked, victim: victim.map(|(_, tell)| tell) }),
        }
    }

    /// Gives a slot back, unless it has been shed already.
    pub(super) fn release(&mut self, source: Source, number: u64, proven: bool) {
        if proven || self.remove_pending(source, number).is_some() {
            self.forget(source);
        }
    }

    /// Takes a handshake out of reach of shedding: it has succeeded. One that has just been shed counts again.
    pub(super) fn prove(&mut self, source: Source, number: u64) {
        if self.remove_pending(source, number).is_none() {
            self.held.entry(source).or_default().all += 1;
            self.len += 1;
        }
    }

    fn shed_oldest_of_largest(&mut self) -> Option<(u64, oneshot::Sender<()>)> {
        let now = self.last;
        let time = |rank: &Rank| u64::from(rank.pending).saturating_mul(now).saturating_sub(rank.begins);
        // Of sources that are equally large, the one with more.
        let largest = self.largest_of_each_number().max_by_key(|rank| (time(rank), rank.pending));
        let Rank { oldest, source, .. } = *largest?;
        let pending = self.remove_pending(source, oldest)?;
        self.forget(source);
        Some((oldest, pending.tell))
    }

    fn insert(&mut self, source: Source, number: u64, pending: Pending) {
        let mut held = self.held.get(&source).copied().unwrap_or_default();
        self.unrank(source, held);
        if held.pending == 0 {
            held.oldest = number;
        }
        held.all += 1;
        held.pending += 1;
        held.begins += pending.begin;
        self.rank(source, held);
        self.held.insert(source, held);
        self.pending.insert((source, number), pending);
        self.len += 1;
    }

    fn remove_pending(&mut self, source: Source, number: u64) -> Option<Pending> {
        let pending = self.pending.remove(&(source, number))?;
        let mut held = *self.held.get(&source).expect("counted while something is pending");
        self.unrank(source, held);
        held.pending -= 1;
        held.begins -= pending.begin;
        if held.pending > 0 && held.oldest == number {
            let oldest = self.pending.range((source, number)..).next();
            held.oldest = oldest.expect("more is pending").0.1;
        }
        self.rank(source, held);
        self.held.insert(source, held);
        Some(pending)
    }

    fn rank(&mut self, source: Source, held: Held) {
        if held.pending > 0 {
            self.ranks.insert(held.rank(source));
        }
    }

    fn unrank(&mut self, source: Source, held: Held) {
        self.ranks.remove(&held.rank(source));
    }

    /// The first of the ranks of each number. There are few different ones: they add up to no more than all that are
    /// pending.
    fn largest_of_each_number(&self) -> impl Iterator<Item = &Rank> {
        let from = |pending| Rank { pending, begins: 0, oldest: 0, source: Source::Unknown };
        let first = self.ranks.first();
        iter::successors(first, move |rank| self.ranks.range(from(rank.pending + 1)..).next())
    }

    /// Counts one less.
    fn forget(&mut self, source: Source) {
        self.len -= 1;
        if let Entry::Occupied(mut held) = self.held.entry(source) {
            held.get_mut().all -= 1;
            if held.get().all == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source::Limited(std::net::IpAddr::from([192, 0, 2, last]).into())
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    impl Table {
        /// Admits these sources, each at its time, and keeps what tells whether they were shed.
        fn fill(&mut self, arrivals: &[(u8, u64)]) -> Vec<Admitted> {
            arrivals.iter().map(|&(last, millis)| self.admit(source(last), at(millis)).unwrap()).collect()
        }
    }

    /// Which of those admitted have been told to go.
    fn shed(admitted: &mut [Admitted]) -> Vec<usize> {
        for victim in admitted.iter_mut().filter_map(|a| a.victim.take()) {
            let _ = victim.send(());
        }
        (0..admitted.len()).filter(|&i| admitted[i].revoked.try_recv().is_ok()).collect()
    }

    #[test]
    fn of_the_largest_source_the_oldest_goes() {
        let mut table = Table::new(4, 4);
        let arrivals = [(1, 0), (2, 60), (2, 70), (2, 80), (3, 100), (4, 110), (5, 120)];
        let mut admitted = table.fill(&arrivals);
        // At 100, 1 has had 100 ms, 2 has had 40 + 30 + 20; then 2 is the largest, with 40 + 30; then with 40 again.
        assert_eq!(shed(&mut admitted), [0, 1, 2]);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn at_the_same_time_those_with_more_are_larger_and_then_the_older() {
        let mut table = Table::new(3, 3);
        let mut admitted = table.fill(&[(9, 0), (2, 0), (2, 0), (1, 0), (3, 0)]);
        assert_eq!(shed(&mut admitted), [0, 1]);
        // Never the newcomer, whatever its address: those who came before it are as old.
        let mut table = Table::new(2, 2);
        let mut admitted = table.fill(&[(9, 0), (8, 0), (1, 0)]);
        assert_eq!(shed(&mut admitted), [0]);
    }

    #[test]
    fn a_newcomer_whose_time_was_read_before_that_of_others_is_no_older_than_they_are() {
        let mut table = Table::new(1, 1);
        let mut admitted = table.fill(&[(2, 101), (1, 100)]);
        assert_eq!(shed(&mut admitted), [0]);
    }

    #[test]
    fn a_newcomer_of_the_largest_source_takes_the_place_of_its_own_oldest() {
        let mut table = Table::new(3, 3);
        let mut admitted = table.fill(&[(1, 50), (2, 0), (2, 10), (2, 60)]);
        assert_eq!(shed(&mut admitted), [1]);
    }

    #[test]
    fn a_source_has_its_share_and_no_more() {
        let mut table = Table::new(10, 2);
        let admitted = table.fill(&[(1, 0), (1, 0)]);
        let over =
            |table: &mut Table| table.admit(source(1), at(1)).err() == Some(HandshakeErrorKind::OverShare);
        assert!(over(&mut table));
        assert!(table.admit(source(2), at(1)).is_ok());
        // Proven but waiting counts; gone does not.
        table.prove(source(1), admitted[0].number);
        assert!(over(&mut table));
        table.release(source(1), admitted[0].number, true);
        assert!(!over(&mut table));
        // The unknown and the exempt have none.
        for source in [Source::Unknown, Source::Exempt("10.0.0.0/8".parse().unwrap())] {
            assert!((0..3).all(|_| table.admit(source, at(2)).is_ok()));
        }
    }

    #[test]
    fn who_has_proven_itself_is_not_shed() {
        let mut table = Table::new(2, 2);
        let mut admitted = table.fill(&[(1, 0), (1, 0)]);
        table.prove(source(1), admitted[0].number);
        admitted.extend(table.fill(&[(2, 1)]));
        assert_eq!(shed(&mut admitted), [1]);
        table.prove(source(2), admitted[2].number);
        assert_eq!(table.admit(source(3), at(2)).err(), Some(HandshakeErrorKind::Overloaded));
        assert_eq!(table.len(), 2);
        // Its proof was there before it was told to go.
        table.prove(source(1), admitted[1].number);
        assert_eq!(table.len(), 3);
        for (last, admitted) in [1, 1, 2].into_iter().zip(&admitted) {
            table.release(source(last), admitted.number, true);
        }
        assert!(table.len() == 0 && table.held.is_empty());
    }

    /// One that holds a slot, as a plain list has it.
    struct Member {
        last: u8,
        number: u64,
        begin: Duration,
        proven: bool,
    }

    /// What the table does, done in the plainest way.
    struct Model(Vec<Member>);

    impl Model {
        fn count(&self, last: u8) -> usize {
            self.0.iter().filter(|m| m.last == last).count()
        }

        /// The number of the one that has to go.
        fn victim(&self, now: Duration) -> u64 {
            let of = |last| self.0.iter().filter(move |m| m.last == last && !m.proven);
            let size = |&last: &u8| {
                let time: Duration = of(last).map(|m| now.saturating_sub(m.begin)).sum();
                let oldest = of(last).map(|m| m.number).min().unwrap();
                (time, of(last).count(), std::cmp::Reverse(oldest))
            };
            let largest = (0..8).filter(|&last| of(last).count() > 0).max_by_key(size).unwrap();
            of(largest).map(|m| m.number).min().unwrap()
        }
    }

    #[test]
    fn it_does_as_a_plain_list_does_whatever_happens() {
        let (cap, share) = (20, 6);
        let mut table = Table::new(cap, share);
        let mut model = Model(Vec::new());
        let mut now = Duration::ZERO;
        // A small generator of its own, so that a failure can be repeated.
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..50_000 {
            now += at(random(3) as u64);
            let place = if model.0.is_empty() { 0 } else { random(model.0.len()) };
            match random(8) {
                0 if !model.0.is_empty() => {
                    let gone = model.0.remove(place);
                    table.release(source(gone.last), gone.number, gone.proven);
                }
                1 if !model.0.is_empty() => {
                    let member = &mut model.0[place];
                    if !member.proven {
                        table.prove(source(member.last), member.number);
                        member.proven = true;
                    }
                }
                _ => {
                    let last = u8::try_from(random(8)).unwrap();
                    let outcome = table.admit(source(last), now);
                    if model.count(last) >= share {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::OverShare));
                    } else if model.0.len() == cap && model.0.iter().all(|m| m.proven) {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::Overloaded));
                    } else {
                        let number = outcome.unwrap().number;
                        model.0.push(Member { last, number, begin: now, proven: false });
                        if model.0.len() > cap {
                            let victim = model.victim(now);
                            model.0.retain(|m| m.number != victim);
                        }
                    }
                }
            }
            assert_eq!(table.len(), model.0.len());
            let numbers: BTreeSet<u64> = table.pending.keys().map(|&(_, number)| number).collect();
            assert_eq!(numbers, model.0.iter().filter(|m| !m.proven).map(|m| m.number).collect());
        }
        for Member { last, number, proven, .. } in model.0 {
            table.release(source(last), number, proven);
        }
        assert!(table.len() == 0 && table.held.is_empty() && table.ranks.is_empty());
    }
}
