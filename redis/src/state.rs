//! What a server knows of a store. Versions only grow here, so nothing that Redis loses, repeats or rolls back revives a
//! revoked key.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};
use tower_challenge::key::{Revocation, Revoker};
use tower_challenge::{KeyEntry, KeyId};

use crate::value::{Form, Keys, Revoked, StoredKey};

/// With fewer revokers than this, none is forgotten.
const MIN_LIVE: usize = 1024;

/// With so many ids, further ones are not noted for a revocation that cannot be opened.
const MAX_DOUBTED: usize = 1_000_000;

/// The ids are in so many parts, so that going over a million of them does not hold the lock for long.
pub(crate) const PARTS: usize = 256;

pub(crate) struct State {
    parts: Vec<HashMap<KeyId, Id>>,
    hasher: RandomState,
    /// Derived keys only: the revokers of keys that sessions may have.
    live: HashMap<KeyId, Revoker>,
    /// With so many, those without a session are forgotten.
    forget_at: usize,
    /// The number of the current load of the store.
    load: u32,
    /// What the keys were when they were last taken.
    counts: Counts,
}

#[derive(Default)]
struct Id {
    /// The highest version of its keys.
    version: u64,
    /// The highest version that is revoked.
    revoked: u64,
    keys: Vec<Held>,
    /// Whether the version is from a state file, and its keys are still to come.
    awaits_keys: bool,
    /// Whether Redis has a revocation that cannot be opened.
    doubtful: bool,
    /// The loads in which Redis last had the keys and the revocation.
    keys_seen: u32,
    revoked_seen: u32,
}

/// What is taken from a state, part by part.
#[derive(Default)]
pub(crate) struct Taken {
    /// The keys that are valid now.
    pub(crate) entries: Vec<KeyEntry>,
    /// When that changes next.
    pub(crate) next: Option<u64>,
    /// What must survive a restart, if it is asked for: the version and the revoked version of each id.
    pub(crate) saved: Option<Vec<(KeyId, (u64, u64))>>,
    pub(crate) counts: Counts,
}

/// A key that is accepted now or later.
struct Held {
    stored: StoredKey,
    revoker: Revoker,
}

/// What a value from Redis has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    Changed,
    Known,
    /// An older version than the one that is known: Redis has gone back.
    Older,
}

impl Default for State {
    fn default() -> Self {
        Self {
            parts: std::iter::repeat_with(HashMap::new).take(PARTS).collect(),
            hasher: RandomState::new(),
            live: HashMap::new(),
            forget_at: 0,
            load: 0,
            counts: Counts::default(),
        }
    }
}

impl State {
    fn part_of(&self, id: &KeyId) -> usize {
        usize::try_from(self.hasher.hash_one(id) % PARTS as u64).unwrap_or_default()
    }

    fn known(&mut self, id: &KeyId) -> &mut Id {
        let part = self.part_of(id);
        self.parts[part].entry(id.clone()).or_default()
    }

    fn get(&self, id: &KeyId) -> Option<&Id> {
        self.parts[self.part_of(id)].get(id)
    }

    /// Begins a load of the store.
    pub(crate) fn begin_load(&mut self) {
        self.load = self.load.wrapping_add(1);
    }

    /// Returns how many ids of a part have a key or a revocation that the current load has not found, and one of them.
    pub(crate) fn lost(&self, part: usize) -> (usize, Option<KeyId>) {
        let is_lost = |known: &Id| {
            known.version > 0 && known.keys_seen != self.load
                || known.revoked > 0 && known.revoked_seen != self.load
        };
        let mut lost = self.parts[part].iter().filter(|(_, known)| is_lost(known)).map(|(id, _)| id);
        let example = lost.next().cloned();
        (usize::from(example.is_some()) + lost.count(), example)
    }

    /// Takes the keys of an id. Keys that are gone are revoked.
    pub(crate) fn apply_keys(&mut self, id: &KeyId, new: Keys) -> Applied {
        let load = self.load;
        let known = self.known(id);
        known.keys_seen = load;
        if new.version < known.version {
            return Applied::Older;
        }
        if new.version == known.version && !known.awaits_keys {
            return Applied::Known;
        }
        (known.version, known.awaits_keys) = (new.version, false);
        let mut old = std::mem::take(&mut known.keys);
        if known.version > known.revoked {
            for stored in new.keys {
                let same = old.iter().position(|held| held.stored.is_same_key(&stored));
                let revoker = same.map_or_else(Revoker::new, |at| old.swap_remove(at).revoker);
                known.keys.push(Held { stored, revoker });
            }
        }
        for held in old {
            held.revoker.revoke();
        }
        Applied::Changed
    }

    /// Revokes the keys of an id up to a version.
    pub(crate) fn apply_revoked(&mut self, id: &KeyId, revoked: Revoked) -> Applied {
        let load = self.load;
        let known = self.known(id);
        known.doubtful = false;
        known.revoked_seen = load;
        if revoked.version <= known.revoked {
            return if revoked.version == known.revoked { Applied::Known } else { Applied::Older };
        }
        known.revoked = revoked.version;
        if known.version <= known.revoked {
            for held in known.keys.drain(..) {
                held.revoker.revoke();
            }
        }
        if let Some(revoker) = self.live.remove(id) {
            revoker.revoke();
        }
        Applied::Changed
    }

    /// Notes that Redis has keys of an id that cannot be opened: they are not lost.
    pub(crate) fn found_unreadable_keys(&mut self, id: &KeyId) {
        let (load, part) = (self.load, self.part_of(id));
        if let Some(known) = self.parts[part].get_mut(id) {
            known.keys_seen = load;
        }
    }

    /// Returns whether an id has keys, now or later.
    pub(crate) fn has_keys(&self, id: &KeyId) -> bool {
        self.get(id).is_some_and(|known| !known.keys.is_empty())
    }

    /// Notes that Redis has a revocation of an id that cannot be opened. A derived key of such an id is refused; its
    /// sessions continue. Ids that are not known are noted only if `form` has no other record of them, and up to a limit:
    /// anyone who can write to Redis can invent ids.
    pub(crate) fn doubt(&mut self, id: &KeyId, form: Form) {
        if self.get(id).is_none() && (form == Form::Sealed || self.len() >= MAX_DOUBTED) {
            return;
        }
        let load = self.load;
        let known = self.known(id);
        (known.doubtful, known.revoked_seen) = (true, load);
    }

    /// Revokes the keys of a part that have ended, and takes those that are valid now.
    pub(crate) fn take(&mut self, part: usize, now: u64, taken: &mut Taken) {
        for (id, known) in &mut self.parts[part] {
            known.keys.retain(|held| {
                let has_ended = held.stored.not_after.is_some_and(|end| end <= now);
                if has_ended {
                    held.revoker.revoke();
                }
                !has_ended
            });
            for held in &known.keys {
                taken.next = taken.next.into_iter().chain(held.stored.next_change(now)).min();
                if held.stored.is_valid(now) {
                    let entry = KeyEntry::new(id.clone(), held.stored.key.clone());
                    let entry = entry.unwrap_or_else(|_| unreachable!("an id"));
                    taken.entries.push(entry.with_revocation(held.revoker.revocation()));
                }
            }
            if let Some(saved) = taken.saved.as_mut().filter(|_| known.version > 0 || known.revoked > 0) {
                saved.push((id.clone(), (known.version, known.revoked)));
            }
            let counts = &mut taken.counts;
            counts.ids += usize::from(!known.keys.is_empty());
            counts.revoked += usize::from(known.revoked > 0 && known.revoked >= known.version);
            counts.changes = counts.changes.wrapping_add(known.version).wrapping_add(known.revoked);
        }
    }

    pub(crate) fn set_counts(&mut self, counts: Counts) {
        self.counts = counts;
    }

    /// Returns how many ids had keys, and how many were revoked, when the keys were last taken.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the revocation of the derived key of an id, unless it is revoked.
    pub(crate) fn derived(&mut self, id: &KeyId) -> Option<Revocation> {
        if self.get(id).is_some_and(|known| known.revoked > 0 || known.doubtful) {
            return None;
        }
        if let Some(revoker) = self.live.get(id) {
            return Some(revoker.revocation());
        }
        // Unauthenticated peers choose ids. Their handshakes are few, and later they observe nothing.
        if self.live.len() >= self.forget_at.max(MIN_LIVE) {
            self.live.retain(|_, revoker| revoker.has_observers());
            self.forget_at = 2 * self.live.len();
        }
        Some(self.live.entry(id.clone()).or_default().revocation())
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(HashMap::len).sum()
    }

    /// Takes the versions that were saved. The keys follow from Redis, if it has the same versions or later ones.
    pub(crate) fn restore(&mut self, saved: &BTreeMap<String, (u64, u64)>) -> Option<()> {
        for (id, (version, revoked)) in saved {
            let id = KeyId::new(base16ct::mixed::decode_vec(id).ok()?).ok()?;
            let known = self.known(&id);
            (known.version, known.revoked, known.awaits_keys) = (*version, *revoked, true);
        }
        Some(())
    }
}

/// The numbers of a state, and a sum that grows with every change: two servers that have seen the same have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) ids: usize,
    pub(crate) revoked: usize,
    pub(crate) changes: u64,
}

impl StoredKey {
    fn is_same_key(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.key.expose_secret(), other.key.expose_secret()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use tower_challenge::Key;

    use super::*;

    fn id(id: &str) -> KeyId {
        KeyId::new(id).unwrap()
    }

    fn keys(version: u64, keys: &[(u8, Option<u64>)]) -> Keys {
        let key = |(byte, not_after): &(u8, Option<u64>)| StoredKey {
            key: Key::new([*byte; 32]).unwrap(),
            not_before: 0,
            not_after: *not_after,
        };
        Keys { version, keys: keys.iter().map(key).collect() }
    }

    fn take(state: &mut State, now: u64) -> Taken {
        let mut taken = Taken { saved: Some(Vec::new()), ..Taken::default() };
        (0..PARTS).for_each(|part| state.take(part, now, &mut taken));
        taken
    }

    /// The first byte of each valid key.
    fn valid(state: &mut State, now: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            take(state, now).entries.iter().map(|entry| entry.key().expose_secret()[0]).collect();
        bytes.sort_unstable();
        bytes
    }

    #[test]
    fn versions_only_grow() {
        let mut state = State::default();
        let alice = id("alice");
        assert_eq!(state.apply_keys(&alice, keys(1, &[(1, None)])), Applied::Changed);
        assert_eq!(state.apply_keys(&alice, keys(3, &[(1, None), (2, None)])), Applied::Changed);
        assert_eq!(state.apply_keys(&alice, keys(3, &[(9, None)])), Applied::Known);
        assert_eq!(state.apply_keys(&alice, keys(2, &[(8, None)])), Applied::Older);
        assert_eq!(valid(&mut state, 0), [1, 2]);
        assert_eq!(state.apply_revoked(&alice, Revoked { version: 3 }), Applied::Changed);
        assert_eq!(valid(&mut state, 0), [0; 0]);
        assert_eq!(state.apply_keys(&alice, keys(3, &[(1, None)])), Applied::Known);
        assert_eq!(state.apply_revoked(&alice, Revoked { version: 2 }), Applied::Older);
        assert_eq!(valid(&mut state, 0), [0; 0]);
        // A new key of the same id.
        assert_eq!(state.apply_keys(&alice, keys(4, &[(5, None)])), Applied::Changed);
        assert_eq!(valid(&mut state, 0), [5]);
    }

    #[test]
    fn revocation_that_comes_before_its_keys_counts() {
        let mut state = State::default();
        state.apply_revoked(&id("alice"), Revoked { version: 7 });
        state.apply_keys(&id("alice"), keys(7, &[(1, None)]));
        assert_eq!(valid(&mut state, 0), [0; 0]);
    }

    #[test]
    fn sessions_of_keys_that_are_gone_end() {
        let mut state = State::default();
        let alice = id("alice");
        state.apply_keys(&alice, keys(1, &[(1, None), (2, Some(50))]));
        assert_eq!(take(&mut state, 10).next, Some(50));
        let held: Vec<_> = state.known(&alice).keys.iter().map(|held| held.revoker.revocation()).collect();
        // The same key in a later version is the same.
        state.apply_keys(&alice, keys(2, &[(2, Some(60)), (1, None)]));
        assert!(held.iter().all(|revocation| !revocation.is_revoked()));
        assert_eq!(valid(&mut state, 60), [1]);
        assert_eq!([held[0].is_revoked(), held[1].is_revoked()], [false, true]);
        state.apply_keys(&alice, keys(3, &[(3, None)]));
        assert!(held[0].is_revoked());
    }

    #[test]
    fn derived_keys_of_revoked_ids_end_and_memory_is_bounded() {
        let mut state = State::default();
        let session = state.derived(&id("alice")).unwrap();
        for number in 0..100_000 {
            assert!(state.derived(&id(&format!("guess-{number}"))).is_some());
        }
        assert!(state.live.len() <= 2 * MIN_LIVE, "{}", state.live.len());
        assert!(!session.is_revoked());
        state.apply_revoked(&id("alice"), Revoked { version: 1 });
        assert!(session.is_revoked());
        assert!(state.derived(&id("alice")).is_none());
        state.doubt(&id("bob"), Form::Derived);
        assert!(state.derived(&id("bob")).is_none());
    }

    #[test]
    fn saved_versions_survive_a_restart() {
        let mut state = State::default();
        state.apply_keys(&id("alice"), keys(5, &[(1, None)]));
        state.apply_keys(&id("bob"), keys(2, &[(2, None)]));
        state.apply_revoked(&id("bob"), Revoked { version: 2 });
        // Each restart finds an older store, and none forgets what the first process has seen.
        for _ in 0..3 {
            let mut restarted = State::default();
            let saved = take(&mut state, 0).saved.unwrap().into_iter();
            let in_hex =
                saved.map(|(id, versions)| (base16ct::lower::encode_string(id.as_bytes()), versions));
            restarted.restore(&in_hex.collect()).unwrap();
            assert_eq!(restarted.apply_keys(&id("alice"), keys(4, &[(9, None)])), Applied::Older);
            restarted.apply_keys(&id("bob"), keys(2, &[(2, None)]));
            assert_eq!(valid(&mut restarted, 0), [0; 0]);
            state = restarted;
        }
        assert_eq!(state.apply_keys(&id("alice"), keys(5, &[(1, None)])), Applied::Changed);
        assert_eq!(state.apply_keys(&id("alice"), keys(5, &[(9, None)])), Applied::Known);
        assert_eq!(valid(&mut state, 0), [1]);
    }

    #[test]
    fn what_a_load_does_not_find_is_lost() {
        let mut state = State::default();
        let lost = |state: &State| (0..PARTS).map(|part| state.lost(part).0).sum::<usize>();
        for load in 0..2 {
            state.begin_load();
            state.apply_keys(&id("alice"), keys(5, &[(1, None)]));
            state.apply_revoked(&id("bob"), Revoked { version: 2 });
            assert_eq!(lost(&state), 0, "{load}");
        }
        state.begin_load();
        state.apply_keys(&id("alice"), keys(4, &[(1, None)]));
        assert_eq!(lost(&state), 1, "the revocation of bob");
        state.begin_load();
        assert_eq!(lost(&state), 2);
        assert_eq!(valid(&mut state, 0), [1]);
        assert!(take(&mut state, 0).saved.unwrap().iter().any(|(known, _)| known == "bob"));
    }
}
