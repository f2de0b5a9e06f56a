use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Identity, Key, KeyEntry, KeyError};

/// What a mechanism makes of a [`Key`] once, so that no handshake has to: a MAC that is keyed already, derived keys.
///
/// A key that does not suit the mechanism fails here, and so wherever keys come in ([`KeyRing::new`],
/// [`KeyRing::replace`]), never in a handshake. An implementation should overwrite its memory when dropped, as
/// RustCrypto's MACs do with their `zeroize` feature.
pub trait PrepareKey: Sized {
    /// How many keys a ring may hold unless its owner [raises it](KeyRing::with_max_keys). For a mechanism that must
    /// try each of them against every stranger; one that looks keys up by id needs no limit.
    const MAX_KEYS: usize = usize::MAX;

    /// Prepares `key`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsuitable`] for a key that this mechanism can't use, too short a one say.
    fn prepare(key: &Key) -> Result<Self, KeyError>;
}

/// The keys that a server accepts at the moment, prepared for one mechanism.
///
/// Cheap to clone, and all clones are one ring: what one [replaces](Self::replace), all have. `K` is what the
/// mechanism makes of a key (`one_way::PreparedKey`, say), `A` is what is attached to each key.
///
/// To rotate a key without refusing anybody: replace the ring by one that has the old key and the new one under the
/// same id, hand the new key out, then replace it by one that has only the new key. Lookups that begin after
/// `replace` has returned never see a key that is gone; sessions that were accepted with it go on.
pub struct KeyRing<K, A = ()> {
    shared: Arc<Shared<K, A>>,
}

struct Shared<K, A> {
    max_keys: usize,
    // Held only to swap or clone the pointer, never across a lookup.
    current: RwLock<KeySnapshot<K, A>>,
}

/// The keys of a [`KeyRing`] at one moment. Cheap to clone.
pub struct KeySnapshot<K, A = ()> {
    keys: Arc<[RingKey<K, A>]>,
}

/// One key of a [`KeyRing`]: prepared, and whose it is.
pub struct RingKey<K, A = ()> {
    key: K,
    identity: Identity<A>,
}

impl<K: PrepareKey, A> KeyRing<K, A> {
    /// A ring of these keys.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoKeys`] for an empty ring, [`KeyError::TooManyKeys`] for more than
    /// [`PrepareKey::MAX_KEYS`], and whatever the mechanism has against one of the keys.
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
        let current = RwLock::new(KeySnapshot::prepare(max_keys, entries)?);
        Ok(Self { shared: Arc::new(Shared { max_keys, current }) })
    }

    /// Replaces all keys at once, in this ring and all its clones, while connections run.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); the ring then stays as it was.
    pub fn replace(&self, entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<(), KeyError> {
        // Prepared before the lock is taken, and the old keys dropped after it is released: nobody waits for either.
        let mut other = KeySnapshot::prepare(self.shared.max_keys, entries)?;
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *current, &mut other);
        drop(current);
        Ok(())
    }
}

impl<K, A> KeyRing<K, A> {
    /// The keys as they are now. A mechanism takes it when it looks for a key, not earlier.
    #[must_use]
    pub fn snapshot(&self) -> KeySnapshot<K, A> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<K: PrepareKey, A> KeySnapshot<K, A> {
    fn prepare(max: usize, entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        let prepare = |entry: KeyEntry<A>| {
            Ok(RingKey { key: K::prepare(&entry.key)?, identity: Identity::new(entry.id, entry.attached) })
        };
        let keys = entries.into_iter().map(prepare).collect::<Result<Arc<[_]>, KeyError>>()?;
        match keys.len() {
            0 => Err(KeyError::NoKeys),
            count if count > max => Err(KeyError::TooManyKeys { count, max }),
            _ => Ok(Self { keys }),
        }
    }
}

impl<K, A> KeySnapshot<K, A> {
    /// All keys, in the order in which they were given.
    pub fn iter(&self) -> std::slice::Iter<'_, RingKey<K, A>> {
        self.keys.iter()
    }
}

impl<'a, K, A> IntoIterator for &'a KeySnapshot<K, A> {
    type Item = &'a RingKey<K, A>;
    type IntoIter = std::slice::Iter<'a, RingKey<K, A>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, A> RingKey<K, A> {
    /// What the mechanism made of the key.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Whose key it is.
    #[must_use]
    pub fn identity(&self) -> &Identity<A> {
        &self.identity
    }
}

impl<K, A> Clone for KeyRing<K, A> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, A> Clone for KeySnapshot<K, A> {
    fn clone(&self) -> Self {
        Self { keys: Arc::clone(&self.keys) }
    }
}

impl<K, A> fmt::Debug for KeyRing<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.snapshot().keys.len()).finish_non_exhaustive()
    }
}

impl<K, A> fmt::Debug for KeySnapshot<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySnapshot").field("keys", &self.keys.len()).finish()
    }
}

impl<K, A> fmt::Debug for RingKey<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingKey").field("key_id", self.identity.key_id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct AtLeastTwo;

    impl PrepareKey for AtLeastTwo {
        const MAX_KEYS: usize = 2;

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
