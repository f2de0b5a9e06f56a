use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;
use std::time::Duration;

use tokio::sync::oneshot;

use super::source::Source;
use crate::error::HandshakeErrorKind;

/// The handshakes in flight: how many each source has, and which one is evicted next.
///
/// A source's weight is the summed age of its handshakes. With the number of its handshakes as the weight, two fast
/// legitimate clients that share an address would outweigh an unauthenticated peer that has been silent for seconds.
#[derive(Debug)]
pub(super) struct Table {
    max_pending: usize,
    max_per_source: u32,
    // The handshakes that can be evicted, oldest first within each source.
    evictable: BTreeMap<(Source, u64), Evictable>,
    // Refused peers that still read their verdict, oldest first. They count towards the cap, and no longer as
    // handshakes of their source.
    lingering: BTreeMap<u64, Evictable>,
    totals: HashMap<Source, Totals>,
    // The sources by their number of evictable handshakes, and heaviest first among those with the same number. Time
    // does not change this order.
    ranks: BTreeSet<Rank>,
    len: usize,
    next: u64,
    // The latest time seen, in microseconds. Threads may call `admit` in another order than they read the clock.
    last: u64,
}

#[derive(Debug)]
struct Evictable {
    evict: oneshot::Sender<()>,
    /// In microseconds.
    begin: u64,
}

/// What a source has in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// The number of handshakes.
    all: u32,
    /// The number of those that can be evicted.
    evictable: u32,
    /// The sum of the times at which they began, in microseconds.
    begins: u64,
    /// The number of the oldest of them.
    oldest: u64,
}

/// Orders sources by their number of evictable handshakes. Among sources with the same number, a smaller `begins`
/// means a heavier source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    evictable: u32,
    begins: u64,
    oldest: u64,
    source: Source,
}

impl Totals {
    fn rank(self, source: Source) -> Rank {
        Rank { evictable: self.evictable, begins: self.begins, oldest: self.oldest, source }
    }
}

/// Converts to microseconds, which overflow after half a million years.
fn micros(since: Duration) -> u64 {
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// A handshake that may begin.
pub(super) struct Admitted {
    pub(super) number: u64,
    pub(super) evicted: oneshot::Receiver<()>,
    /// The handshake that is evicted in exchange. The message must be sent after the table is unlocked, since it wakes
    /// a task.
    pub(super) victim: Option<oneshot::Sender<()>>,
}

impl Table {
    pub(super) fn new(max_pending: usize, max_per_source: usize) -> Self {
        Self {
            max_pending,
            max_per_source: max_per_source.try_into().unwrap_or(u32::MAX),
            evictable: BTreeMap::new(),
            lingering: BTreeMap::new(),
            totals: HashMap::new(),
            ranks: BTreeSet::new(),
            len: 0,
            next: 0,
            last: 0,
        }
    }

    /// Returns the number of handshakes in flight.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Admits a handshake at the time `now`, which counts from any fixed moment.
    pub(super) fn admit(&mut self, source: Source, now: Duration) -> Result<Admitted, HandshakeErrorKind> {
        if self.is_at_limit(source) {
            return Err(HandshakeErrorKind::SourceLimit);
        }
        let number = self.next;
        self.next += 1;
        let (evict, evicted) = oneshot::channel();
        self.last = self.last.max(micros(now));
        self.insert(source, number, Evictable { evict, begin: self.last });
        let victim = if self.len > self.max_pending { self.evict() } else { None };
        match victim {
            // All others have succeeded, so that none can be evicted for this one.
            Some((victim, _)) if victim == number => Err(HandshakeErrorKind::Overloaded),
            victim => Ok(Admitted { number, evicted, victim: victim.map(|(_, evict)| evict) }),
        }
    }

    /// Returns whether a source has reached its limit, which applies while at least three quarters of the slots are in
    /// use. While more slots are free, a burst of legitimate clients that share an address harms no other source. Slots of
    /// refused peers count as free, since they are evicted first.
    fn is_at_limit(&self, source: Source) -> bool {
        let in_flight = self.totals.get(&source).map_or(0, |totals| totals.all);
        source.limited().is_some()
            && in_flight >= self.max_per_source
            && self.len - self.lingering.len() >= self.max_pending - self.max_pending / 4
    }

    /// Moves a handshake to the source that turned out to be its own, with its age. Does nothing if it was evicted.
    pub(super) fn set_source(
        &mut self,
        from: Source,
        number: u64,
        to: Source,
    ) -> Result<(), HandshakeErrorKind> {
        let Some(evictable) = self.remove_evictable(from, number) else { return Ok(()) };
        self.decrement(from);
        let is_at_limit = self.is_at_limit(to);
        self.insert(to, number, evictable);
        if is_at_limit { Err(HandshakeErrorKind::SourceLimit) } else { Ok(()) }
    }

    /// Marks a handshake as refused: its peer still reads the verdict.
    pub(super) fn linger(&mut self, source: Source, number: u64) {
        if let Some(evictable) = self.remove_evictable(source, number) {
            self.decrement(source);
            self.lingering.insert(number, evictable);
            self.len += 1;
        }
    }

    /// Releases a slot. Returns whether it was evicted before.
    pub(super) fn release(&mut self, source: Source, number: u64, proven: bool) -> bool {
        if proven || self.remove_evictable(source, number).is_some() {
            self.decrement(source);
            false
        } else if self.lingering.remove(&number).is_some() {
            self.len -= 1;
            false
        } else {
            true
        }
    }

    /// Marks a handshake as successful, so that it cannot be evicted. One that was evicted just before counts again.
    pub(super) fn prove(&mut self, source: Source, number: u64) {
        if self.remove_evictable(source, number).is_none() {
            self.totals.entry(source).or_default().all += 1;
            self.len += 1;
        }
    }

    /// Evicts a refused peer that still reads its verdict, if there is one, and else the oldest handshake of the
    /// heaviest source.
    fn evict(&mut self) -> Option<(u64, oneshot::Sender<()>)> {
        if let Some((number, evicted)) = self.lingering.pop_first() {
            self.len -= 1;
            return Some((number, evicted.evict));
        }
        self.evict_oldest_of_heaviest()
    }

    fn evict_oldest_of_heaviest(&mut self) -> Option<(u64, oneshot::Sender<()>)> {
        let now = self.last;
        let weight = |rank: &Rank| u64::from(rank.evictable).saturating_mul(now).saturating_sub(rank.begins);
        // Of sources with the same weight, the one with more handshakes.
        let heaviest = self.heaviest_of_each_count().max_by_key(|rank| (weight(rank), rank.evictable));
        let Rank { oldest, source, .. } = *heaviest?;
        let evicted = self.remove_evictable(source, oldest)?;
        self.decrement(source);
        Some((oldest, evicted.evict))
    }

    fn insert(&mut self, source: Source, number: u64, evictable: Evictable) {
        let mut totals = self.totals.get(&source).copied().unwrap_or_default();
        self.unrank(source, totals);
        // Usually it is the newest, but not one that comes from another source.
        totals.oldest = if totals.evictable == 0 { number } else { totals.oldest.min(number) };
        totals.all += 1;
        totals.evictable += 1;
        totals.begins += evictable.begin;
        self.rank(source, totals);
        self.totals.insert(source, totals);
        self.evictable.insert((source, number), evictable);
        self.len += 1;
    }

    fn remove_evictable(&mut self, source: Source, number: u64) -> Option<Evictable> {
        let evictable = self.evictable.remove(&(source, number))?;
        let mut totals = *self.totals.get(&source).expect("a source with a handshake has totals");
        self.unrank(source, totals);
        totals.evictable -= 1;
        totals.begins -= evictable.begin;
        if totals.evictable > 0 && totals.oldest == number {
            let oldest = self.evictable.range((source, number)..).next();
            totals.oldest = oldest.expect("the source has more handshakes").0.1;
        }
        self.rank(source, totals);
        self.totals.insert(source, totals);
        Some(evictable)
    }

    fn rank(&mut self, source: Source, totals: Totals) {
        if totals.evictable > 0 {
            self.ranks.insert(totals.rank(source));
        }
    }

    fn unrank(&mut self, source: Source, totals: Totals) {
        self.ranks.remove(&totals.rank(source));
    }

    /// Returns the first rank of each number of handshakes. There are few different numbers, since they add up to at
    /// most the number of all handshakes.
    fn heaviest_of_each_count(&self) -> impl Iterator<Item = &Rank> {
        let from = |evictable| Rank { evictable, begins: 0, oldest: 0, source: Source::Unknown };
        let first = self.ranks.first();
        iter::successors(first, move |rank| self.ranks.range(from(rank.evictable + 1)..).next())
    }

    fn decrement(&mut self, source: Source) {
        self.len -= 1;
        if let Entry::Occupied(mut totals) = self.totals.entry(source) {
            totals.get_mut().all -= 1;
            if totals.get().all == 0 {
                totals.remove();
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
        /// Admits handshakes of these sources, each at its time.
        fn fill(&mut self, arrivals: &[(u8, u64)]) -> Vec<Admitted> {
            arrivals.iter().map(|&(last, millis)| self.admit(source(last), at(millis)).unwrap()).collect()
        }
    }

    /// Returns the indices of the evicted handshakes.
    fn evicted(admitted: &mut [Admitted]) -> Vec<usize> {
        for victim in admitted.iter_mut().filter_map(|a| a.victim.take()) {
            let _ = victim.send(());
        }
        (0..admitted.len()).filter(|&i| admitted[i].evicted.try_recv().is_ok()).collect()
    }

    #[test]
    fn evicts_oldest_of_heaviest_source() {
        let mut table = Table::new(4, 4);
        let arrivals = [(1, 0), (2, 60), (2, 70), (2, 80), (3, 100), (4, 110), (5, 120)];
        let mut admitted = table.fill(&arrivals);
        // At 100 ms, the weight of source 1 is 100 ms and that of source 2 is 40 + 30 + 20 ms. At 110 ms source 2 is
        // the heaviest, and at 120 ms again.
        assert_eq!(evicted(&mut admitted), [0, 1, 2]);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn equal_weights_are_ordered_by_count_and_then_by_age() {
        let mut table = Table::new(3, 3);
        let mut admitted = table.fill(&[(9, 0), (2, 0), (2, 0), (1, 0), (3, 0)]);
        assert_eq!(evicted(&mut admitted), [0, 1]);
        // The new handshake is never evicted, whatever its address: the earlier ones have the same age.
        let mut table = Table::new(2, 2);
        let mut admitted = table.fill(&[(9, 0), (8, 0), (1, 0)]);
        assert_eq!(evicted(&mut admitted), [0]);
    }

    #[test]
    fn out_of_order_clock_does_not_age_new_handshake() {
        let mut table = Table::new(1, 1);
        let mut admitted = table.fill(&[(2, 101), (1, 100)]);
        assert_eq!(evicted(&mut admitted), [0]);
    }

    #[test]
    fn heaviest_source_evicts_its_own_oldest() {
        let mut table = Table::new(3, 3);
        let mut admitted = table.fill(&[(1, 50), (2, 0), (2, 10), (2, 60)]);
        assert_eq!(evicted(&mut admitted), [1]);
    }

    #[test]
    fn source_limit_does_not_apply_while_most_slots_are_free() {
        let mut table = Table::new(12, 2);
        // Nine slots are three quarters of them.
        table.fill(&[(1, 0); 9]);
        assert_eq!(table.admit(source(1), at(1)).err(), Some(HandshakeErrorKind::SourceLimit));
        assert!(table.admit(source(2), at(1)).is_ok());
    }

    /// Otherwise a client whose proofs are all refused could turn the limit on for everyone else.
    #[test]
    fn refused_peers_do_not_turn_the_source_limit_on() {
        let mut table = Table::new(12, 2);
        for refused in table.fill(&[(1, 0); 9]) {
            table.linger(source(1), refused.number);
        }
        let admitted = table.fill(&[(2, 1); 9]);
        assert_eq!((admitted.len(), table.len()), (9, 12), "in place of the refused ones");
        assert_eq!(table.admit(source(2), at(1)).err(), Some(HandshakeErrorKind::SourceLimit));
    }

    #[test]
    fn source_limit_rejects_new_handshakes() {
        let mut table = Table::new(12, 2);
        let admitted = table.fill(&[(1, 0), (1, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0)]);
        let over =
            |table: &mut Table| table.admit(source(1), at(1)).err() == Some(HandshakeErrorKind::SourceLimit);
        assert!(over(&mut table));
        assert!(table.admit(source(2), at(1)).is_ok());
        // A successful handshake counts until it is released.
        table.prove(source(1), admitted[0].number);
        assert!(over(&mut table));
        table.release(source(1), admitted[0].number, true);
        assert!(!over(&mut table));
        // Unknown and exempt sources have no limit.
        for source in [Source::Unknown, Source::Exempt("10.0.0.0/8".parse().unwrap())] {
            assert!((0..3).all(|_| table.admit(source, at(2)).is_ok()));
        }
    }

    #[test]
    fn successful_handshake_is_not_evicted() {
        let mut table = Table::new(2, 2);
        let mut admitted = table.fill(&[(1, 0), (1, 0)]);
        table.prove(source(1), admitted[0].number);
        admitted.extend(table.fill(&[(2, 1)]));
        assert_eq!(evicted(&mut admitted), [1]);
        table.prove(source(2), admitted[2].number);
        assert_eq!(table.admit(source(3), at(2)).err(), Some(HandshakeErrorKind::Overloaded));
        assert_eq!(table.len(), 2);
        // It succeeded before it observed the eviction.
        table.prove(source(1), admitted[1].number);
        assert_eq!(table.len(), 3);
        for (last, admitted) in [1, 1, 2].into_iter().zip(&admitted) {
            table.release(source(last), admitted.number, true);
        }
        assert!(table.len() == 0 && table.totals.is_empty());
    }

    /// A handshake in flight.
    struct Member {
        last: u8,
        number: u64,
        begin: Duration,
        state: State,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum State {
        InFlight,
        Proven,
        Lingering,
    }

    /// The specification of `Table`, as a plain list.
    struct Model(Vec<Member>);

    impl Model {
        fn is_over_share(&self, last: u8, cap: usize, limit: usize) -> bool {
            let count = |in_flight: &dyn Fn(&&Member) -> bool| {
                self.0.iter().filter(|m| m.state != State::Lingering).filter(in_flight).count()
            };
            count(&|m| m.last == last) >= limit && count(&|_| true) >= cap - cap / 4
        }

        /// Returns the number of the handshake to evict.
        fn victim(&self, now: Duration) -> u64 {
            let lingering = self.0.iter().filter(|m| m.state == State::Lingering).map(|m| m.number).min();
            if let Some(oldest) = lingering {
                return oldest;
            }
            let of = |last| self.0.iter().filter(move |m| m.last == last && m.state == State::InFlight);
            let weight = |&last: &u8| {
                let time: Duration = of(last).map(|m| now.saturating_sub(m.begin)).sum();
                let oldest = of(last).map(|m| m.number).min().unwrap();
                (time, of(last).count(), std::cmp::Reverse(oldest))
            };
            let heaviest = (0..8).filter(|&last| of(last).count() > 0).max_by_key(weight).unwrap();
            of(heaviest).map(|m| m.number).min().unwrap()
        }
    }

    #[test]
    fn random_operations_match_model() {
        let (cap, limit) = (20, 6);
        let mut table = Table::new(cap, limit);
        let mut model = Model(Vec::new());
        let mut now = Duration::ZERO;
        // A fixed pseudo-random sequence, so that a failure is reproducible.
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..50_000 {
            now += at(random(3) as u64);
            let index = if model.0.is_empty() { 0 } else { random(model.0.len()) };
            match random(10) {
                0 if !model.0.is_empty() => {
                    let removed = model.0.remove(index);
                    let proven = removed.state == State::Proven;
                    assert!(!table.release(source(removed.last), removed.number, proven), "in flight");
                    assert!(table.release(source(removed.last), removed.number, false), "gone");
                }
                1 if !model.0.is_empty() => {
                    let member = &mut model.0[index];
                    if member.state == State::InFlight {
                        table.prove(source(member.last), member.number);
                        member.state = State::Proven;
                    }
                }
                2 if !model.0.is_empty() => {
                    let member = &mut model.0[index];
                    if member.state == State::InFlight {
                        table.linger(source(member.last), member.number);
                        member.state = State::Lingering;
                    }
                }
                3 if !model.0.is_empty() => {
                    let to = u8::try_from(random(8)).unwrap();
                    let Member { last, number, state, .. } = model.0[index];
                    if state == State::InFlight && last != to {
                        let moved = model.0.remove(index);
                        let over = model.is_over_share(to, cap, limit);
                        model.0.push(Member { last: to, ..moved });
                        let outcome = table.set_source(source(last), number, source(to));
                        assert_eq!(outcome.is_err(), over);
                    }
                }
                _ => {
                    let last = u8::try_from(random(8)).unwrap();
                    let outcome = table.admit(source(last), now);
                    if model.is_over_share(last, cap, limit) {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::SourceLimit));
                    } else if model.0.len() == cap && model.0.iter().all(|m| m.state == State::Proven) {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::Overloaded));
                    } else {
                        let number = outcome.unwrap().number;
                        model.0.push(Member { last, number, begin: now, state: State::InFlight });
                        if model.0.len() > cap {
                            let victim = model.victim(now);
                            model.0.retain(|m| m.number != victim);
                        }
                    }
                }
            }
            assert_eq!(table.len(), model.0.len());
            let numbers: BTreeSet<u64> = table.evictable.keys().map(|&(_, number)| number).collect();
            let in_flight = model.0.iter().filter(|m| m.state == State::InFlight);
            assert_eq!(numbers, in_flight.map(|m| m.number).collect());
        }
        for Member { last, number, state, .. } in model.0 {
            table.release(source(last), number, state == State::Proven);
        }
        assert!(table.len() == 0 && table.totals.is_empty() && table.ranks.is_empty());
        assert!(table.lingering.is_empty());
    }
}
