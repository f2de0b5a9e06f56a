use std::collections::HashMap;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::fingerprint::Fingerprint;
use super::index::{Found, Index};
use super::source::Prepared;
use super::{KeyEntry, KeyError, KeyId, KeySet, KeySource, PrepareKey, RingKey};
use crate::error::BoxError;

/// The keys that a server accepts, held in memory and prepared for one mechanism.
///
/// `K` is the prepared form of a key, e.g. `one_way::PreparedKey`, and `A` is the metadata of each key. Each mechanism
/// has an alias that sets `K`, e.g. [`one_way::KeyRing`](crate::one_way::KeyRing).
///
/// Cheap to clone. All clones share their content: [`replace`](Self::replace) changes all of them.
///
/// A lookup by id takes the same time in a ring of a million keys as in a ring of one.
///
/// # Key rotation
///
/// To rotate a key without refusing its holder, replace the content of the ring twice: first by one that has the old
/// and the new key under the same id, and, once the holder uses the new key, by one that has only the new key.
/// Lookups that begin after `replace` has returned never see a removed key.
///
/// # Revocation
///
/// A key that is no longer in the ring under its id is revoked, even if the id has other keys. Sessions that were
/// authenticated with it can observe that, see [`Authenticated::revocation`](crate::Authenticated::revocation), and end
/// by themselves with [`Acceptor::end_revoked_sessions`](crate::Acceptor::end_revoked_sessions). A key that stays in the
/// ring with the same id and the same bytes is not affected, whatever the order of the entries and their metadata.
pub struct KeyRing<K, A = ()> {
    shared: Arc<Shared<K, A>>,
}

struct Shared<K, A> {
    max_keys: usize,
    // Held while the keys are replaced, so that each replacement sees the keys that it replaces.
    replacing: Mutex<()>,
    // Locked only to swap or clone the pointer, never during a lookup.
    current: RwLock<Arc<Contents<K, A>>>,
}

struct Contents<K, A> {
    // Grouped by id, so that the keys of an id are one range.
    keys: Arc<[RingKey<K, A>]>,
    // Of the same keys, in the same order.
    fingerprints: Box<[Fingerprint]>,
    index: Index,
}

impl<K: PrepareKey, A> KeyRing<K, A> {
    /// Creates a ring of these keys.
    ///
    /// # Errors
    ///
    /// - [`KeyError::NoKeys`] if there are no entries.
    /// - [`KeyError::TooManyKeys`] if there are more than [`PrepareKey::MAX_KEYS`].
    /// - [`KeyError::TooManyKeysOfId`] if more than [`PrepareKey::MAX_KEYS_PER_ID`] have the same id.
    /// - [`KeyError::UnsuitableKeyOfId`] if the mechanism cannot use one of the keys, e.g. because it is too short.
    /// - [`KeyError::SharedKey`] if two ids have the same key, and the mechanism identifies peers by their key.
    pub fn new(entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        Self::with_max_keys(K::MAX_KEYS, entries)
    }

    /// Creates a ring of these keys that may hold up to `max_keys` keys, now and after each
    /// [`replace`](Self::replace).
    ///
    /// For a mechanism without key ids, each key costs one MAC per answer, even if the peer holds no key: about 250 ns
    /// with HMAC-MD5.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`new`](Self::new).
    pub fn with_max_keys(
        max_keys: usize,
        entries: impl IntoIterator<Item = KeyEntry<A>>,
    ) -> Result<Self, KeyError> {
        let current = RwLock::new(Arc::new(Contents::prepare(max_keys, entries, None)?));
        Ok(Self { shared: Arc::new(Shared { max_keys, replacing: Mutex::new(()), current }) })
    }

    /// Replaces all keys at once, in this ring and all its clones, while connections run.
    ///
    /// Preparing a key takes a microsecond or more, so call this in `spawn_blocking` for a large ring.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`new`](Self::new). The ring is then unchanged.
    pub fn replace(&self, entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<(), KeyError> {
        let _replacing = self.shared.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.contents();
        // Prepare the new keys before locking and drop the old ones after unlocking, so that no lookup waits for it.
        let new = Arc::new(Contents::prepare(self.shared.max_keys, entries, Some(&old))?);
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(&new);
        drop(current);
        // No lookup finds them any more.
        old.revoke_keys_missing_in(&new);
        Ok(())
    }
}

impl<K, A> KeyRing<K, A> {
    /// Returns the current keys. A mechanism should call this when it verifies an answer, not earlier, so that a
    /// removed key stops working at once.
    #[must_use]
    pub fn snapshot(&self) -> KeySet<K, A> {
        let contents = self.contents();
        let count = contents.keys.len();
        KeySet { range: 0..count, keys: Arc::clone(&contents.keys), known: count }
    }

    fn contents(&self) -> Arc<Contents<K, A>> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The lookup completes immediately.
impl<K, A> KeySource<K> for KeyRing<K, A> {
    type Metadata = A;
    type Lookup = Ready<Result<KeySet<K, A>, BoxError>>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let contents = self.contents();
        let Found { range, known } = contents.index.find(id);
        let known = if known { range.len() } else { 0 };
        ready(Ok(KeySet { keys: Arc::clone(&contents.keys), range, known }))
    }
}

impl<K: PrepareKey, A> Contents<K, A> {
    /// Prepares `entries`. Those that `old` has under the same id are taken over, with their revocation.
    fn prepare(
        max: usize,
        entries: impl IntoIterator<Item = KeyEntry<A>>,
        old: Option<&Self>,
    ) -> Result<Self, KeyError> {
        // Ids in the order of their first entry, and the keys of each id in the order of the entries.
        let mut order = HashMap::new();
        let mut keys = Vec::new();
        for entry in entries {
            let next = order.len();
            let group: usize = *order.entry(entry.id.clone()).or_insert(next);
            let fingerprint = Fingerprint::of(&entry.key)?;
            let key = match old.and_then(|old| old.find_same(&entry.id, fingerprint)) {
                Some(same) if entry.revocation.as_ref().is_none_or(|new| same.is_revoked_by(new)) => {
                    RingKey::of_prepared(Arc::clone(same), entry.id, entry.metadata)
                }
                _ => RingKey::prepare(entry.revocable())?,
            };
            keys.push((group, fingerprint, key));
        }
        match keys.len() {
            0 => return Err(KeyError::NoKeys),
            count if count > max => return Err(KeyError::TooManyKeys { count, max }),
            _ => {}
        }
        keys.sort_by_key(|(group, ..)| *group);
        let (fingerprints, keys): (Vec<_>, Vec<_>) =
            keys.into_iter().map(|(_, fingerprint, key)| (fingerprint, key)).unzip();
        refuse_shared_keys(&keys)?;

        let mut ranges = Vec::with_capacity(order.len());
        let mut start = 0;
        for group in keys.chunk_by(|a, b| a.identity().key_id() == b.identity().key_id()) {
            let id = group[0].identity().key_id();
            if group.len() > K::MAX_KEYS_PER_ID {
                return Err(KeyError::TooManyKeysOfId { id: id.clone(), max: K::MAX_KEYS_PER_ID });
            }
            ranges.push((id.as_bytes(), start..start + group.len()));
            start += group.len();
        }
        let index = Index::new(&ranges);
        Ok(Self { keys: keys.into(), fingerprints: fingerprints.into(), index })
    }
}

impl<K, A> Contents<K, A> {
    /// Finds the same key under the same id.
    fn find_same(&self, id: &KeyId, fingerprint: Fingerprint) -> Option<&Arc<Prepared<K>>> {
        let Found { range, known } = self.index.find(id.as_bytes());
        let mut keys = self.keys[range.clone()].iter().zip(&self.fingerprints[range]);
        if known {
            keys.find(|(_, found)| **found == fingerprint).map(|(key, _)| &key.prepared)
        } else {
            None
        }
    }

    /// Revokes the keys that `new` does not have with the same revocation.
    fn revoke_keys_missing_in(&self, new: &Self) {
        for (key, fingerprint) in self.keys.iter().zip(&self.fingerprints) {
            let Some(revocation) = &key.prepared.revocation else { continue };
            let same = new.find_same(key.identity().key_id(), *fingerprint);
            if !same.is_some_and(|same| same.is_revoked_by(revocation)) {
                revocation.revoke();
            }
        }
    }
}

/// Refuses a key under two ids, if the peer's id is derived from its key: the mechanism could not tell them apart.
fn refuse_shared_keys<K: PrepareKey, A>(keys: &[RingKey<K, A>]) -> Result<(), KeyError> {
    let mut ids: HashMap<Vec<u8>, &KeyId> = HashMap::new();
    for key in keys {
        let id = key.identity().key_id();
        for mac in key.key().macs_of_constant() {
            let first = *ids.entry(mac).or_insert(id);
            if first != id {
                return Err(KeyError::SharedKey { first: first.clone(), second: id.clone() });
            }
        }
    }
    Ok(())
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
    use super::super::Key;
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
    fn new_and_replace_reject_invalid_sets() {
        type Ring = KeyRing<AtLeastTwo>;
        let ring = Ring::new(entries(&["one"])).unwrap();
        for (keys, error) in [
            (&[][..], KeyError::NoKeys),
            (&["x", "two"], KeyError::UnsuitableKeyOfId { id: KeyId::new("x").unwrap(), reason: "short" }),
            (&["one", "two", "three"], KeyError::TooManyKeys { count: 3, max: 2 }),
        ] {
            assert_eq!(Ring::new(entries(keys)).unwrap_err(), error);
            assert_eq!(ring.replace(entries(keys)).unwrap_err(), error);
        }
        assert_eq!(ids(&ring), ["one"], "a failed replace does not change the ring");
        let raised = Ring::with_max_keys(3, entries(&["one", "two", "three"])).unwrap();
        raised.replace(entries(&["four", "five", "six"])).unwrap();
        let id = KeyId::new("one").unwrap();
        assert_eq!(
            raised.replace(entries(&["one", "one", "one"])).unwrap_err(),
            KeyError::TooManyKeysOfId { id, max: 2 }
        );
    }

    #[test]
    fn look_up_returns_all_keys_of_an_id_in_order() {
        let entry =
            |id: &str, metadata| KeyEntry::new(id, Key::new("key").unwrap()).unwrap().with_metadata(metadata);
        let ring = KeyRing::<AtLeastTwo, _>::with_max_keys(
            9,
            [entry("b", 1), entry("a", 2), entry("b", 3), entry("c", 4), entry("a", 5)],
        )
        .unwrap();
        let found = |id: &str| -> Vec<i32> {
            let found = ring.look_up(id.as_bytes()).into_inner().unwrap();
            found.iter().map(|key| *key.identity().metadata()).collect()
        };
        assert_eq!((found("a"), found("b"), found("c")), (vec![2, 5], vec![1, 3], vec![4]));
        assert!(found("d").is_empty());
        let all: Vec<_> = ring.snapshot().iter().map(|key| *key.identity().metadata()).collect();
        assert_eq!(all, [1, 3, 2, 5, 4]);
    }

    /// HMAC pads a short key with zeros and hashes a long one, so that different keys give the same tags.
    #[test]
    fn one_key_under_two_ids_is_refused_if_no_id_is_sent() {
        fn check<K: PrepareKey>(refused: bool) {
            let long = [9; 100];
            let hashed = <md5::Md5 as hmac::digest::Digest>::digest(long);
            for (first, second) in [
                (&b"one key, 16 byte"[..], &b"one key, 16 byte"[..]),
                (b"padded, 16 bytes", b"padded, 16 bytes\0"),
                (&long, &hashed),
            ] {
                let entries = || {
                    [("alice", first), ("alice", second), ("bob", second)]
                        .map(|(id, key)| KeyEntry::new(id, Key::new(key).unwrap()).unwrap())
                };
                let id = |id| KeyId::new(id).unwrap();
                let error = KeyRing::<K>::new(entries()).err();
                assert_eq!(
                    error,
                    refused.then(|| KeyError::SharedKey { first: id("alice"), second: id("bob") })
                );
                KeyRing::<K>::new(entries()[..2].to_vec()).expect("two keys of one id");
            }
        }
        check::<crate::one_way::PreparedKey>(true);
        #[cfg(feature = "multiprocessing")]
        check::<crate::multiprocessing::PreparedKey>(true);
        #[cfg(feature = "mutual")]
        check::<crate::mutual::PreparedKey>(false);
    }

    #[test]
    fn clones_share_content_and_snapshots_do_not_change() {
        let ring = KeyRing::new(entries(&["old"])).unwrap();
        let (clone, before) = (ring.clone(), ring.snapshot());
        ring.replace(entries(&["old", "new"])).unwrap();
        assert_eq!(ids(&clone), ["old", "new"]);
        clone.replace(entries(&["new"])).unwrap();
        assert_eq!(ids(&ring), ["new"]);
        assert_eq!(before.iter().next().unwrap().identity().key_id(), &"old");
    }
}
