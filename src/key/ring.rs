use std::collections::HashMap;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::{Arc, PoisonError, RwLock};

use super::index::{Found, Index};
use super::{FoundKeys, KeyEntry, KeyError, Keys, LookupError, PrepareKey, RingKey};

/// The keys that a server accepts at the moment, prepared for one mechanism.
///
/// Cheap to clone, and all clones are one ring: what one [replaces](Self::replace), all have. `K` is what the
/// mechanism makes of a key (`one_way::PreparedKey`, say), `A` is what is attached to each key.
///
/// To rotate a key without refusing anybody: replace the ring by one that has the old key and the new one under the
/// same id, hand the new key out, then replace it by one that has only the new key. Lookups that begin after
/// `replace` has returned never see a key that is gone; sessions that were accepted with it go on.
///
/// A lookup by id takes the same time in a ring of a million keys as in a ring of one.
pub struct KeyRing<K, A = ()> {
    shared: Arc<Shared<K, A>>,
}

struct Shared<K, A> {
    max_keys: usize,
    // Held only to swap or clone the pointer, never across a lookup.
    current: RwLock<Arc<Contents<K, A>>>,
}

struct Contents<K, A> {
    // Grouped by id, so that the keys of an id are one stretch.
    keys: Arc<[Box<RingKey<K, A>>]>,
    index: Index,
}

impl<K: PrepareKey, A> KeyRing<K, A> {
    /// A ring of these keys.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoKeys`] for an empty ring, [`KeyError::TooManyKeys`] for more than
    /// [`PrepareKey::MAX_KEYS`], [`KeyError::TooManyKeysOfId`] for more than [`PrepareKey::MAX_KEYS_PER_ID`] with the
    /// same id, and whatever the mechanism has against one of the keys.
    pub fn new(entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        Self::with_max_keys(K::MAX_KEYS, entries)
    }

    /// A ring of these keys that may hold up to `max_keys`, now and whenever it is replaced.
    ///
    /// Each key of a mechanism without ids costs a MAC for every stranger who answers: about 250 ns with HMAC-MD5.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn with_max_keys(
        max_keys: usize,
        entries: impl IntoIterator<Item = KeyEntry<A>>,
    ) -> Result<Self, KeyError> {
        let current = RwLock::new(Arc::new(Contents::prepare(max_keys, entries)?));
        Ok(Self { shared: Arc::new(Shared { max_keys, current }) })
    }

    /// Replaces all keys at once, in this ring and all its clones, while connections run.
    ///
    /// Each key is prepared first, which takes a microsecond or more: of a large ring, call it where a processor may
    /// be kept busy, in `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); the ring then stays as it was.
    pub fn replace(&self, entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<(), KeyError> {
        // Prepared before the lock is taken, and the old keys dropped after it is released: nobody waits for either.
        let mut other = Arc::new(Contents::prepare(self.shared.max_keys, entries)?);
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *current, &mut other);
        drop(current);
        Ok(())
    }
}

impl<K, A> KeyRing<K, A> {
    /// The keys as they are now. A mechanism takes it when it looks for a key, not earlier.
    #[must_use]
    pub fn snapshot(&self) -> FoundKeys<K, A> {
        let contents = self.contents();
        FoundKeys { stretch: 0..contents.keys.len(), keys: Arc::clone(&contents.keys), known: true }
    }

    fn contents(&self) -> Arc<Contents<K, A>> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Finds at once.
impl<K, A> Keys<K> for KeyRing<K, A> {
    type Attached = A;
    type Lookup = Ready<Result<FoundKeys<K, A>, LookupError>>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let contents = self.contents();
        let Found { stretch, known } = contents.index.find(id);
        ready(Ok(FoundKeys { keys: Arc::clone(&contents.keys), stretch, known }))
    }
}

impl<K: PrepareKey, A> Contents<K, A> {
    fn prepare(max: usize, entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        // Ids in the order in which each came first, and the keys of each in the order in which they came.
        let mut order = HashMap::new();
        let mut keys = Vec::new();
        for entry in entries {
            let next = order.len();
            let place: usize = *order.entry(entry.id.clone()).or_insert(next);
            keys.push((place, RingKey::prepare(entry)?));
        }
        match keys.len() {
            0 => return Err(KeyError::NoKeys),
            count if count > max => return Err(KeyError::TooManyKeys { count, max }),
            _ => {}
        }
        keys.sort_by_key(|(place, _)| *place);
        let keys: Arc<[_]> = keys.into_iter().map(|(_, key)| key).collect();

        let mut stretches = Vec::with_capacity(order.len());
        let mut start = 0;
        for stretch in keys.chunk_by(|a, b| a.identity.key_id() == b.identity.key_id()) {
            let id = stretch[0].identity.key_id();
            if stretch.len() > K::MAX_KEYS_PER_ID {
                return Err(KeyError::TooManyKeysOfId { id: id.clone(), max: K::MAX_KEYS_PER_ID });
            }
            stretches.push((id.as_bytes(), start..start + stretch.len()));
            start += stretch.len();
        }
        let index = Index::new(&stretches);
        Ok(Self { keys, index })
    }
}

impl<K, A> Clone for KeyRing<K, A> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, A> fmt::Debug for KeyRing<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.contents().keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Key, KeyId};
    use super::*;

    #[derive(Debug)]
    struct AtLeastTwo;

    impl PrepareKey for AtLeastTwo {
        const MAX_KEYS: usize = 2;
        const MAX_KEYS_PER_ID: usize = 2;

        fn prepare(key: &Key) -> Result<Self, KeyError> {
            if key.expose_secret().len() < 2 { Err(KeyError::Unsuitable("short")) } else { Ok(Self) }
        }
    }

    fn entries(keys: &[&str]) -> Vec<KeyEntry> {
        keys.iter().map(|key| KeyEntry::new(*key, Key::new(key).unwrap()).unwrap()).collect()
    }

    fn ids(ring: &KeyRing<AtLeastTwo>) -> Vec<String> {
        ring.snapshot().iter().map(|key| key.identity().key_id().to_string()).collect()
    }

    #[test]
    fn a_bad_set_is_refused_at_construction_and_at_replace() {
        type Ring = KeyRing<AtLeastTwo>;
        let ring = Ring::new(entries(&["one"])).unwrap();
        for (keys, error) in [
            (&[][..], KeyError::NoKeys),
            (&["x", "two"], KeyError::Unsuitable("short")),
            (&["one", "two", "three"], KeyError::TooManyKeys { count: 3, max: 2 }),
        ] {
            assert_eq!(Ring::new(entries(keys)).unwrap_err(), error);
            assert_eq!(ring.replace(entries(keys)).unwrap_err(), error);
        }
        assert_eq!(ids(&ring), ["one"], "a failed replace leaves the ring as it was");
        let raised = Ring::with_max_keys(3, entries(&["one", "two", "three"])).unwrap();
        raised.replace(entries(&["four", "five", "six"])).unwrap();
        let id = KeyId::new("one").unwrap();
        assert_eq!(
            raised.replace(entries(&["one", "one", "one"])).unwrap_err(),
            KeyError::TooManyKeysOfId { id, max: 2 }
        );
    }

    #[test]
    fn the_keys_of_an_id_are_found_together_in_their_order() {
        let entry =
            |id: &str, attached| KeyEntry::new(id, Key::new("key").unwrap()).unwrap().attach(attached);
        let ring = KeyRing::<AtLeastTwo, _>::with_max_keys(
            9,
            [entry("b", 1), entry("a", 2), entry("b", 3), entry("c", 4), entry("a", 5)],
        )
        .unwrap();
        let found = |id: &str| -> Vec<i32> {
            let found = ring.look_up(id.as_bytes()).into_inner().unwrap();
            found.iter().map(|key| *key.identity().attached()).collect()
        };
        assert_eq!((found("a"), found("b"), found("c")), (vec![2, 5], vec![1, 3], vec![4]));
        assert_eq!(found("d"), []);
        let all: Vec<_> = ring.snapshot().iter().map(|key| *key.identity().attached()).collect();
        assert_eq!(all, [1, 3, 2, 5, 4]);
    }

    #[test]
    fn clones_are_one_ring_and_a_snapshot_stays() {
        let ring = KeyRing::new(entries(&["old"])).unwrap();
        let (clone, before) = (ring.clone(), ring.snapshot());
        ring.replace(entries(&["old", "new"])).unwrap();
        assert_eq!(ids(&clone), ["old", "new"]);
        clone.replace(entries(&["new"])).unwrap();
        assert_eq!(ids(&ring), ["new"]);
        assert_eq!(before.iter().next().unwrap().identity().key_id(), &"old");
    }
}
