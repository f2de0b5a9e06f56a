use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::oneshot;

use super::source::Source;
use crate::error::HandshakeErrorKind;

/// Which handshakes are pending: how many of each source, and which is to go first.
#[derive(Debug)]
pub(super) struct Table {
    max_pending: usize,
    max_per_source: usize,
    // Those that can be shed, oldest first within each source, and how to tell them.
    pending: BTreeMap<(Source, u64), oneshot::Sender<()>>,
    held: HashMap<Source, Held>,
    // Every source with something to shed: the last is the largest, and of those the one whose oldest is oldest.
    by_size: BTreeSet<(usize, Reverse<u64>, Source)>,
    len: usize,
    next: u64,
}

/// What a source holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    all: usize,
    pending: usize,
    // The number of the oldest that is pending, if any is.
    oldest: u64,
}

/// A handshake that may begin.
pub(super) struct Admitted {
    pub(super) number: u64,
    pub(super) shed: oneshot::Receiver<()>,
    /// Who has to go in exchange: to be told once the table is not locked any more, since that wakes a task.
    pub(super) victim: Option<oneshot::Sender<()>>,
}

impl Table {
    pub(super) fn new(max_pending: usize, max_per_source: usize) -> Self {
        Self {
            max_pending,
            max_per_source,
            pending: BTreeMap::new(),
            held: HashMap::new(),
            by_size: BTreeSet::new(),
            len: 0,
            next: 0,
        }
    }

    /// How many hold a slot.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn admit(&mut self, source: Source) -> Result<Admitted, HandshakeErrorKind> {
        let held = self.held.get(&source).map_or(0, |held| held.all);
        if source.limited().is_some() && held >= self.max_per_source {
            return Err(HandshakeErrorKind::OverShare);
        }
        let number = self.next;
        self.next += 1;
        let (tell, shed) = oneshot::channel();
        self.insert(source, number, tell);
        let victim = if self.len > self.max_pending { self.shed_oldest_of_largest() } else { None };
        match victim {
            // All the others have proven themselves: there is nobody to make room.
            Some((victim, _)) if victim == number => Err(HandshakeErrorKind::Overloaded),
            victim => Ok(Admitted { number, shed, victim: victim.map(|(_, tell)| tell) }),
        }
    }

    /// Gives a slot back, unless it has been shed already.
    pub(super) fn release(&mut self, source: Source, number: u64, proven: bool) {
        if proven || self.remove_pending(source, number).is_some() {
            self.forget(source);
        }
    }

    /// Takes a handshake out of reach of shedding: it has succeeded. False if it was too late for that.
    pub(super) fn prove(&mut self, source: Source, number: u64) -> bool {
        self.remove_pending(source, number).is_some()
    }

    fn shed_oldest_of_largest(&mut self) -> Option<(u64, oneshot::Sender<()>)> {
        let &(_, Reverse(number), source) = self.by_size.last()?;
        let tell = self.remove_pending(source, number)?;
        self.forget(source);
        Some((number, tell))
    }

    fn insert(&mut self, source: Source, number: u64, tell: oneshot::Sender<()>) {
        let held = self.held.entry(source).or_insert(Held { all: 0, pending: 0, oldest: number });
        if held.pending == 0 {
            held.oldest = number;
        } else {
            self.by_size.remove(&(held.pending, Reverse(held.oldest), source));
        }
        held.all += 1;
        held.pending += 1;
        self.by_size.insert((held.pending, Reverse(held.oldest), source));
        self.pending.insert((source, number), tell);
        self.len += 1;
    }

    fn remove_pending(&mut self, source: Source, number: u64) -> Option<oneshot::Sender<()>> {
        let tell = self.pending.remove(&(source, number))?;
        let held = self.held.get_mut(&source).expect("counted while something is pending");
        self.by_size.remove(&(held.pending, Reverse(held.oldest), source));
        held.pending -= 1;
        if held.pending > 0 {
            if held.oldest == number {
                let oldest = self.pending.range((source, number)..).next();
                held.oldest = oldest.expect("more is pending").0.1;
            }
            self.by_size.insert((held.pending, Reverse(held.oldest), source));
        }
        Some(tell)
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

    impl Table {
        /// Admits all of `sources`, and keeps what tells whether they were shed.
        fn fill(&mut self, sources: &[u8]) -> Vec<Admitted> {
            sources.iter().map(|&last| self.admit(source(last)).unwrap()).collect()
        }
    }

    /// Which of those admitted have been told to go, after the victims among `admitted` were.
    fn shed(admitted: &mut [Admitted]) -> Vec<usize> {
        for victim in admitted.iter_mut().filter_map(|a| a.victim.take()) {
            let _ = victim.send(());
        }
        (0..admitted.len()).filter(|&i| admitted[i].shed.try_recv().is_ok()).collect()
    }

    #[test]
    fn of_the_largest_source_the_oldest_goes() {
        let mut table = Table::new(5, 3);
        let mut admitted = table.fill(&[1, 2, 2, 1, 2, 3, 4, 5]);
        // 3 makes it six: 2 has three, and its oldest is the second; 4: both have two, and 1's is older; 5: 2 has two.
        assert_eq!(shed(&mut admitted), [0, 1, 2]);
        assert_eq!(table.len(), 5);
    }

    #[test]
    fn a_newcomer_of_the_largest_source_takes_the_place_of_its_own_oldest() {
        let mut table = Table::new(3, 3);
        let mut admitted = table.fill(&[1, 2, 2, 2]);
        assert_eq!(shed(&mut admitted), [1]);
    }

    #[test]
    fn a_source_has_its_share_and_no_more() {
        let mut table = Table::new(10, 2);
        let admitted = table.fill(&[1, 1]);
        assert_eq!(table.admit(source(1)).err(), Some(HandshakeErrorKind::OverShare));
        assert!(table.admit(source(2)).is_ok());
        // Proven but waiting counts; gone does not.
        assert!(table.prove(source(1), admitted[0].number));
        assert_eq!(table.admit(source(1)).err(), Some(HandshakeErrorKind::OverShare));
        table.release(source(1), admitted[0].number, true);
        assert!(table.admit(source(1)).is_ok());
        // The unknown and the exempt have none.
        for source in [Source::Unknown, Source::Exempt("10.0.0.0/8".parse().unwrap())] {
            assert!((0..3).all(|_| table.admit(source).is_ok()));
        }
    }

    #[test]
    fn who_has_proven_itself_is_not_shed() {
        let mut table = Table::new(2, 2);
        let mut admitted = table.fill(&[1, 1]);
        assert!(table.prove(source(1), admitted[0].number));
        admitted.extend(table.fill(&[2]));
        assert_eq!(shed(&mut admitted), [1]);
        assert!(!table.prove(source(1), admitted[1].number), "too late");
        assert!(table.prove(source(2), admitted[2].number));
        assert_eq!(table.admit(source(3)).err(), Some(HandshakeErrorKind::Overloaded));
        assert_eq!(table.len(), 2);
    }

    /// Against a plain list, over many random steps.
    #[test]
    fn it_counts_right_whatever_happens() {
        struct Model(Vec<(u8, u64, bool)>);
        impl Model {
            fn count(&self, last: u8, proven: bool) -> usize {
                self.0.iter().filter(|m| m.0 == last && (proven || !m.2)).count()
            }
        }
        let (cap, share) = (20, 6);
        let mut table = Table::new(cap, share);
        let mut model = Model(Vec::new());
        // A small generator of its own, so that a failure can be repeated.
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..50_000 {
            let at = if model.0.is_empty() { 0 } else { random(model.0.len()) };
            match random(8) {
                0 if !model.0.is_empty() => {
                    let (last, number, proven) = model.0.remove(at);
                    table.release(source(last), number, proven);
                }
                1 if !model.0.is_empty() => {
                    let member = &mut model.0[at];
                    assert_eq!(table.prove(source(member.0), member.1), !member.2);
                    member.2 = true;
                }
                _ => {
                    let last = u8::try_from(random(8)).unwrap();
                    let outcome = table.admit(source(last));
                    if model.count(last, true) >= share {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::OverShare));
                    } else if model.0.len() == cap && model.0.iter().all(|m| m.2) {
                        assert_eq!(outcome.err(), Some(HandshakeErrorKind::Overloaded));
                    } else {
                        model.0.push((last, outcome.unwrap().number, false));
                        if model.0.len() > cap {
                            let largest = (0..8).map(|last| model.count(last, false)).max().unwrap();
                            let of_largest =
                                |m: &&(u8, u64, bool)| !m.2 && model.count(m.0, false) == largest;
                            let number = model.0.iter().filter(of_largest).map(|m| m.1).min().unwrap();
                            model.0.retain(|m| m.1 != number);
                        }
                    }
                }
            }
            assert_eq!(table.len(), model.0.len());
            assert_eq!(table.pending.len(), model.0.iter().filter(|m| !m.2).count());
        }
        for (last, number, proven) in model.0 {
            table.release(source(last), number, proven);
        }
        assert!(table.len() == 0 && table.held.is_empty() && table.by_size.is_empty());
    }
}
