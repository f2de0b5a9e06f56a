use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::ops::Range;

/// Where the keys of an id are, found without a trace of whether there are any.
///
/// A hash map takes another path for an id that it has than for one that it has not: some nanoseconds, which is
/// enough for a patient neighbour. Here both read the same places in the same order: the ids' hashes, under a secret
/// seed, lie sorted in buckets, and as many of them as the fullest bucket has are compared, whatever is found.
pub(super) struct Index {
    seed: RandomState,
    /// Where in `slots` each bucket begins.
    buckets: Box<[u32]>,
    /// Sorted by hash. As many more as a search looks at, so that the last one has something to look at.
    slots: Box<[Slot]>,
    /// How many slots a search looks at.
    window: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    start: u32,
    end: u32,
}

/// What a search found: some stretch always, and whether it is that of the id.
pub(super) struct Found {
    pub(super) stretch: Range<usize>,
    pub(super) known: bool,
}

impl Index {
    /// An index of these stretches of keys, at least one, each with its id.
    pub(super) fn new(stretches: &[(&[u8], Range<usize>)]) -> Self {
        loop {
            let seed = RandomState::new();
            let mut slots: Vec<_> = stretches
                .iter()
                .map(|(id, stretch)| Slot {
                    hash: seed.hash_one(id),
                    start: to_u32(stretch.start),
                    end: to_u32(stretch.end),
                })
                .collect();
            slots.sort_unstable_by_key(|slot| slot.hash);
            // Two ids with one hash happen once in many millions of rings of a million: then another seed will do.
            if slots.windows(2).all(|pair| pair[0].hash != pair[1].hash) {
                return Self::of(seed, slots);
            }
        }
    }

    fn of(seed: RandomState, mut slots: Vec<Slot>) -> Self {
        let count = slots.len();
        let mut buckets = Vec::with_capacity(count);
        let (mut next, mut window) = (0, 0);
        for bucket in 0..count {
            buckets.push(to_u32(next));
            let begin = next;
            while next < count && scale(slots[next].hash, count) == bucket {
                next += 1;
            }
            window = window.max(next - begin);
        }
        let last = slots[count - 1];
        slots.resize(count + window, last);
        Self { seed, buckets: buckets.into(), slots: slots.into(), window }
    }

    /// The stretch of `id`, or another one in its place.
    pub(super) fn find(&self, id: &[u8]) -> Found {
        let hash = self.seed.hash_one(id);
        let begin = self.buckets[scale(hash, self.buckets.len())] as usize;
        let slots = &self.slots[begin..begin + self.window];
        // In the place of an id that is not known, one of those near it, any as likely as the others: were it always
        // the first, fewer keys would be read for unknown ids than for known ones, and be nearer at hand.
        let mut found = slots[scale(hash.rotate_left(u64::BITS / 2), self.window)];
        let mut known = 0;
        for slot in slots {
            // All ones where it is this one, and no branch: the last of the same hash counts, and they are the same.
            let mask = black_box(u32::from(slot.hash == hash)).wrapping_neg();
            found.start = (slot.start & mask) | (found.start & !mask);
            found.end = (slot.end & mask) | (found.end & !mask);
            known |= mask;
        }
        Found { stretch: found.start as usize..found.end as usize, known: known != 0 }
    }
}

/// A hash as a number less than `count`, spread evenly and in the order of the hashes. Multiplied and not divided:
/// how long a division takes depends on what is divided.
fn scale(hash: u64, count: usize) -> usize {
    let scaled = (u128::from(hash) * count as u128) >> u64::BITS;
    usize::try_from(scaled).expect("less than the count")
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).expect("a ring of less than four thousand million keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_found_and_no_other() {
        for count in [1_usize, 2, 3, 10, 1000, 20_000] {
            let ids: Vec<_> = (0..count).map(|id| id.to_string()).collect();
            let stretches: Vec<_> =
                ids.iter().enumerate().map(|(at, id)| (id.as_bytes(), 2 * at..2 * at + 2)).collect();
            let index = Index::new(&stretches);
            assert!(index.window < 16, "{} of {count} in one bucket", index.window);
            for (at, id) in ids.iter().enumerate() {
                let found = index.find(id.as_bytes());
                assert_eq!((found.stretch, found.known), (2 * at..2 * at + 2, true));
            }
            for id in count..2 * count {
                let found = index.find(id.to_string().as_bytes());
                assert!(!found.known && found.stretch.end <= 2 * count);
            }
        }
    }
}
