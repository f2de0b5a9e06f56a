use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::ops::Range;

/// Maps each id to the range of its keys, with lookups in constant time.
///
/// A hash map takes another path for an id that it contains than for one that it does not. The difference is some
/// nanoseconds, which is enough for a patient attacker on the same network. Here both lookups read the same number of
/// slots in the same order: the hashes of the ids, under a secret seed, are sorted into buckets, and a lookup compares
/// as many slots as the fullest bucket has, whether or not it finds the id.
pub(super) struct Index {
    seed: RandomState,
    /// The index in `slots` at which each bucket begins.
    buckets: Box<[u32]>,
    /// Sorted by hash, and padded by `window` slots, so that a search in the last bucket stays within bounds.
    slots: Box<[Slot]>,
    /// The number of slots that a search compares.
    window: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    start: u32,
    end: u32,
}

/// The result of a search: always a range, and whether it belongs to the id.
pub(super) struct Found {
    pub(super) range: Range<usize>,
    pub(super) known: bool,
}

impl Index {
    /// Creates an index of these ranges of keys, each with its id. There must be at least one.
    pub(super) fn new(ranges: &[(&[u8], Range<usize>)]) -> Self {
        loop {
            let seed = RandomState::new();
            let mut slots: Vec<_> = ranges
                .iter()
                .map(|(id, range)| Slot {
                    hash: seed.hash_one(id),
                    start: to_u32(range.start),
                    end: to_u32(range.end),
                })
                .collect();
            slots.sort_unstable_by_key(|slot| slot.hash);
            // In many millions of rings of a million keys, one has two ids with the same hash. It gets another seed.
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

    /// Returns the range of `id`, or another range if the id is unknown.
    pub(super) fn find(&self, id: &[u8]) -> Found {
        let hash = self.seed.hash_one(id);
        let begin = self.buckets[scale(hash, self.buckets.len())] as usize;
        let slots = &self.slots[begin..begin + self.window];
        // For an unknown id, return one of the compared slots, each equally likely. If it was always the first one,
        // lookups of unknown ids would touch fewer keys than lookups of known ids, and find them in the cache.
        let mut found = slots[scale(hash.rotate_left(u64::BITS / 2), self.window)];
        let mut known = 0;
        for slot in slots {
            // All ones if this is the slot, without a branch. Padding may repeat the last slot; the copies are equal.
            let mask = black_box(u32::from(slot.hash == hash)).wrapping_neg();
            found.start = (slot.start & mask) | (found.start & !mask);
            found.end = (slot.end & mask) | (found.end & !mask);
            known |= mask;
        }
        Found { range: found.start as usize..found.end as usize, known: known != 0 }
    }
}

/// Maps a hash to a number below `count`, evenly and in the order of the hashes. It multiplies instead of dividing,
/// since the time of a division depends on its operands.
fn scale(hash: u64, count: usize) -> usize {
    let scaled = (u128::from(hash) * count as u128) >> u64::BITS;
    usize::try_from(scaled).expect("below `count`")
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).expect("a ring has fewer than 2^32 keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_known_ids_only() {
        for count in [1_usize, 2, 3, 10, 1000, 20_000] {
            let ids: Vec<_> = (0..count).map(|id| id.to_string()).collect();
            let ranges: Vec<_> =
                ids.iter().enumerate().map(|(at, id)| (id.as_bytes(), 2 * at..2 * at + 2)).collect();
            let index = Index::new(&ranges);
            assert!(index.window < 16, "{} of {count} in one bucket", index.window);
            for (at, id) in ids.iter().enumerate() {
                let found = index.find(id.as_bytes());
                assert_eq!((found.range, found.known), (2 * at..2 * at + 2, true));
            }
            for id in count..2 * count {
                let found = index.find(id.to_string().as_bytes());
                assert!(!found.known && found.range.end <= 2 * count);
            }
        }
    }
}
