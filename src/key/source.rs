use std::fmt;
use std::iter;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use super::{Identity, Key, KeyEntry, KeyError, KeyId, PrepareKey, Revocation};
use crate::error::BoxError;

/// The greatest number of keys of an id that are prepared for every lookup.
const MAX_DECOYS: usize = 8;

/// A source of keys by id, for mechanisms in which the client sends the id of its key. `K` is the prepared form of a
/// key.
///
/// [`KeyRing`](super::KeyRing) holds keys in memory, `DerivedKeys` derives them, and [`KeyStore`](super::KeyStore)
/// calls an asynchronous function. Implement this trait for a cache or a data structure of your own, with
/// [`KeySet::prepare`].
///
/// # Enumeration of key ids
///
/// An unknown id is refused like a wrong proof: with the same bytes after the same work, provided that the lookup takes
/// the same time. Lookups in a `KeyRing`, in `DerivedKeys` and of the keys that a `KeyStore` has found do. But a remote
/// store that answers faster for ids that it does not have, or has not cached, reveals them to a peer that measures the
/// time. If key ids are sensitive, make hits and misses take the same time.
pub trait KeySource<K> {
    /// The metadata of each key.
    type Metadata;

    /// The future of a lookup. It counts against the deadline of the handshake, and is dropped when that passes. If the
    /// lookup fails, the handshake ends with [`KeySource`](crate::HandshakeErrorKind::KeySource), and the peer is not
    /// refused.
    type Lookup: Future<Output = Result<KeySet<K, Self::Metadata>, BoxError>>;

    /// Looks up the keys of `id`. An unauthenticated peer chose it: it may be any 1 to 255 bytes.
    fn look_up(&self, id: &[u8]) -> Self::Lookup;
}

/// A set of prepared keys: all keys of a ring at one moment, or the keys of one id, of which there may be none. Cheap
/// to clone.
pub struct KeySet<K, A = ()> {
    pub(super) keys: Arc<[RingKey<K, A>]>,
    /// The keys to try.
    pub(super) range: Range<usize>,
    /// How many of them, from the first on, are those that were looked up.
    pub(super) known: usize,
}

/// A prepared key with the identity of its holder.
pub struct RingKey<K, A = ()> {
    pub(super) prepared: Arc<Prepared<K>>,
    owner: Owner<A>,
}

/// A prepared key. Shared, so that it is not moved: a move leaves a copy in memory that is never overwritten.
pub(super) struct Prepared<K> {
    key: K,
    pub(super) revocation: Option<Revocation>,
}

impl<K> Prepared<K> {
    pub(super) fn is_revoked_by(&self, revocation: &Revocation) -> bool {
        self.revocation.as_ref().is_some_and(|own| own.is_same(revocation))
    }
}

/// Whose key it is. A decoy has an allocation of the same size, so that creating one takes as long.
enum Owner<A> {
    Holder(Identity<A>),
    Decoy { _allocation: Arc<(KeyId, MaybeUninit<A>, Option<Revocation>)> },
}

impl<K: PrepareKey, A> KeySet<K, A> {
    /// Prepares the keys of `id`, for a [`KeySource`] of your own. Pass no entries for an unknown id; this takes as
    /// long as for a known one.
    ///
    /// # Errors
    ///
    /// A lookup should return these errors as its [`BoxError`].
    ///
    /// - [`KeyError::AnotherId`] if an entry has another id.
    /// - [`KeyError::TooManyKeysOfId`] if there are more than [`PrepareKey::MAX_KEYS_PER_ID`].
    /// - [`KeyError::UnsuitableKeyOfId`] if the mechanism cannot use one of the keys.
    pub fn prepare(id: &[u8], entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        // As many keys are prepared for every id, known or not, so that the time does not reveal which it is. The same
        // code prepares decoys, and they are created as a store creates its entries: even a branch into a copy of that
        // code takes another time.
        let tried = if K::MAX_KEYS_PER_ID <= MAX_DECOYS { K::MAX_KEYS_PER_ID } else { 1 };
        // The length of an invalid id does not matter.
        let decoy_id = KeyId::new(id).or_else(|_| KeyId::new([0]))?;
        let decoys = iter::repeat_with(|| KeyEntry::decoy(decoy_id.clone()));
        let mut keys = Vec::with_capacity(tried);
        let mut known = 0;
        for entry in entries.into_iter().map(KeyEntry::or_decoy).chain(decoys) {
            let is_decoy = entry.metadata.is_none();
            if is_decoy && keys.len() >= tried {
                break;
            }
            if !is_decoy && entry.id.as_bytes() != id {
                return Err(KeyError::AnotherId(entry.id));
            }
            known += usize::from(!is_decoy);
            if known > K::MAX_KEYS_PER_ID {
                return Err(KeyError::TooManyKeysOfId { id: entry.id, max: K::MAX_KEYS_PER_ID });
            }
            keys.push(RingKey::prepare_or_decoy(entry)?);
        }
        Ok(Self { range: 0..keys.len(), keys: keys.into(), known })
    }

    /// Prepares the key of `entry` for its id, or as a decoy in the place of an id that is not known.
    #[cfg(feature = "mutual")]
    pub(super) fn prepare_one(entry: KeyEntry<Option<A>>) -> Result<Self, KeyError> {
        let known = usize::from(entry.metadata.is_some());
        Ok(Self { range: 0..1, keys: Arc::new([RingKey::prepare_or_decoy(entry)?]), known })
    }
}

impl<K, A> KeySet<K, A> {
    /// Returns an iterator over the keys.
    pub fn iter(&self) -> slice::Iter<'_, RingKey<K, A>> {
        self.as_slice().iter()
    }

    /// Returns the keys as a slice.
    #[must_use]
    pub fn as_slice(&self) -> &[RingKey<K, A>] {
        &self.in_range()[..self.known]
    }

    /// Returns the keys to verify a proof with, whether or not the id is known, so that a mechanism can do the same
    /// work in both cases.
    ///
    /// They are in the order of [`as_slice`](Self::as_slice). If that is empty, these are keys of another id, or none,
    /// and **a proof that matches one of them must still be refused.** For this reason they come without an identity.
    pub fn keys_to_try(&self) -> impl Iterator<Item = &K> {
        self.in_range().iter().map(RingKey::key)
    }

    fn in_range(&self) -> &[RingKey<K, A>] {
        &self.keys[self.range.clone()]
    }
}

impl<'a, K, A> IntoIterator for &'a KeySet<K, A> {
    type Item = &'a RingKey<K, A>;
    type IntoIter = slice::Iter<'a, RingKey<K, A>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<A> KeyEntry<A> {
    /// Converts to an entry of which there are decoys: those without metadata.
    fn or_decoy(self) -> KeyEntry<Option<A>> {
        let Self { id, key, metadata, revocation } = self;
        KeyEntry { id, key, metadata: Some(metadata), revocation }
    }
}

impl<A> KeyEntry<Option<A>> {
    /// Creates the entry of a key that no peer holds.
    fn decoy(id: KeyId) -> Self {
        Self { id, key: Key::throwaway(), metadata: None, revocation: None }
    }
}

impl<K: PrepareKey, A> RingKey<K, A> {
    pub(super) fn prepare(entry: KeyEntry<A>) -> Result<Self, KeyError> {
        Self::prepare_or_decoy(entry.or_decoy())
    }

    /// Prepares a key for its holder, or as a decoy, with the same work.
    fn prepare_or_decoy(entry: KeyEntry<Option<A>>) -> Result<Self, KeyError> {
        let KeyEntry { id, key, metadata, revocation } = entry;
        let key = K::prepare(&key).map_err(|error| error.with_id(&id))?;
        let prepared = Arc::new(Prepared { key, revocation: revocation.clone() });
        let owner = match metadata {
            Some(metadata) => Owner::Holder(Identity::of(id, metadata, revocation)),
            None => Owner::Decoy { _allocation: Arc::new((id, MaybeUninit::uninit(), revocation)) },
        };
        Ok(Self { prepared, owner })
    }
}

impl<K, A> RingKey<K, A> {
    /// The same prepared key for another identity.
    pub(super) fn of_prepared(prepared: Arc<Prepared<K>>, id: KeyId, metadata: A) -> Self {
        let owner = Owner::Holder(Identity::of(id, metadata, prepared.revocation.clone()));
        Self { prepared, owner }
    }
}

impl<K, A> RingKey<K, A> {
    /// Returns the prepared key.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.prepared.key
    }

    /// Returns the identity of the key's holder.
    #[must_use]
    pub fn identity(&self) -> &Identity<A> {
        match &self.owner {
            Owner::Holder(identity) => identity,
            Owner::Decoy { .. } => unreachable!("decoys are not among the keys that were found"),
        }
    }
}

impl<K, A> Clone for KeySet<K, A> {
    fn clone(&self) -> Self {
        Self { keys: Arc::clone(&self.keys), range: self.range.clone(), known: self.known }
    }
}

impl<K, A> fmt::Debug for KeySet<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.as_slice().len()).finish()
    }
}

impl<K, A> fmt::Debug for RingKey<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match &self.owner {
            Owner::Holder(identity) => Some(identity.key_id()),
            Owner::Decoy { .. } => None,
        };
        f.debug_struct("RingKey").field("key_id", &id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static PREPARED: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts how many keys the thread prepares.
    struct Counted<const MAX: usize>;

    impl<const MAX: usize> PrepareKey for Counted<MAX> {
        const MAX_KEYS_PER_ID: usize = MAX;

        fn prepare(_: &Key) -> Result<Self, KeyError> {
            PREPARED.set(PREPARED.get() + 1);
            Ok(Self)
        }
    }

    fn entries(id: &str, count: usize) -> Vec<KeyEntry> {
        (0..count).map(|_| KeyEntry::new(id, Key::generate().unwrap()).unwrap()).collect()
    }

    /// Prepares entries for the id `a`. Returns how many keys were prepared, are to be tried, and were found.
    fn prepared<const MAX: usize>(entries: Vec<KeyEntry>) -> Result<[usize; 3], KeyError> {
        PREPARED.set(0);
        let set = KeySet::<Counted<MAX>>::prepare(b"a", entries)?;
        Ok([PREPARED.get(), set.keys_to_try().count(), set.as_slice().len()])
    }

    #[test]
    fn as_many_keys_are_prepared_for_every_id() {
        for known in 0..=4 {
            assert_eq!(prepared::<4>(entries("a", known)), Ok([4, 4, known]));
        }
        // Without a limit that could be filled up, an unknown id costs as much as one with a single key.
        for known in [1, 2, 20] {
            assert_eq!(prepared::<{ usize::MAX }>(entries("a", known)), Ok([known, known, known]));
        }
        assert_eq!(prepared::<{ usize::MAX }>(Vec::new()), Ok([1, 1, 0]));
        // Bytes that are not an id cost the same.
        PREPARED.set(0);
        assert!(
            KeySet::<Counted<4>>::prepare(b"", entries("", 0)).is_ok_and(|set| set.as_slice().is_empty())
        );
        assert_eq!(PREPARED.get(), 4);
    }

    #[test]
    fn too_many_keys_and_keys_of_another_id_are_errors() {
        let a = KeyId::new("a").unwrap();
        assert_eq!(prepared::<4>(entries("a", 5)), Err(KeyError::TooManyKeysOfId { id: a, max: 4 }));
        let b = KeyId::new("b").unwrap();
        let mixed = [entries("a", 1), entries("b", 1)].concat();
        assert_eq!(prepared::<4>(mixed), Err(KeyError::AnotherId(b)));
        // An id that stands in for one that is not valid is not the id of an entry.
        let zero = KeyId::new([0]).unwrap();
        let error = KeySet::<Counted<4>>::prepare(b"", entries("\0", 1)).err();
        assert_eq!(error, Some(KeyError::AnotherId(zero)));
    }
}
