use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use super::{Identity, Key, KeyEntry, KeyError, PrepareKey};

/// Why a lookup failed. Not that an id is unknown: that is a lookup that found nothing.
pub type LookupError = Box<dyn Error + Send + Sync>;

/// Where a server finds the keys of an id, prepared as `K`, for mechanisms in which the client names its key.
///
/// [`KeyRing`](super::KeyRing) has them in memory, `DerivedKeys` makes them, and
/// [`KeyStore`](super::KeyStore) asks anything that is asynchronous.
///
/// # What a stranger can see
///
/// An unknown id is refused like a wrong proof: the same bytes, after the same work, for as long as the lookup itself
/// takes the same time. In memory it does. A remote store that answers faster for ids that it does not have, or has not
/// cached, tells them apart to whoever has a clock; have it take its time in both cases where ids must not be found out.
pub trait Keys<K> {
    /// What is attached to each key.
    type Attached;

    /// The lookup. It counts against the handshake's deadline, and is dropped when that passes. Its failure ends the
    /// handshake, reported as [`KeySource`](crate::HandshakeErrorKind::KeySource); the peer is not refused.
    type Lookup: Future<Output = Result<FoundKeys<K, Self::Attached>, LookupError>>;

    /// Looks for the keys of `id`, which is as the peer sent it: 1 to 255 bytes of its choice.
    fn look_up(&self, id: &[u8]) -> Self::Lookup;
}

/// Some keys: all of a ring at one moment, or those of one id, none of them perhaps. Cheap to clone.
pub struct FoundKeys<K, A = ()> {
    // Boxed, so that no key is moved in memory once it is there: what is moved leaves a copy behind.
    pub(super) keys: Arc<[Box<RingKey<K, A>>]>,
    pub(super) stretch: Range<usize>,
    // Whether the keys of the stretch are those that were looked for.
    pub(super) known: bool,
}

/// One key: prepared, and whose it is.
pub struct RingKey<K, A = ()> {
    pub(super) key: K,
    pub(super) identity: Identity<A>,
}

impl<K: PrepareKey, A> FoundKeys<K, A> {
    /// These keys, for a source of one's own. An unknown id is an empty collection, which costs as much as one key.
    ///
    /// # Errors
    ///
    /// What the mechanism has against one of the keys, or against so many: a [`LookupError`] to be passed on.
    pub fn prepare(entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        let keys = entries.into_iter().map(RingKey::prepare).collect::<Result<Arc<[_]>, KeyError>>()?;
        if keys.is_empty() {
            // For nobody, but no sooner than for somebody.
            black_box(K::prepare(&Key::throwaway()).is_ok());
        }
        if let Some(key) = keys.get(K::MAX_KEYS_PER_ID) {
            let id = key.identity.key_id().clone();
            return Err(KeyError::TooManyKeysOfId { id, max: K::MAX_KEYS_PER_ID });
        }
        Ok(Self { stretch: 0..keys.len(), keys, known: true })
    }
}

impl<K, A> FoundKeys<K, A> {
    /// One after the other.
    pub fn iter(&self) -> slice::Iter<'_, Box<RingKey<K, A>>> {
        self.as_slice().iter()
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Box<RingKey<K, A>>] {
        if self.known { self.to_try() } else { &[] }
    }

    /// Keys to do the work with, whether any were found or not: for a mechanism that is to take the same time for an id
    /// that is not known. Where [`as_slice`](Self::as_slice) is empty, these are another's, or none: **what verifies
    /// against them counts for nothing.**
    #[must_use]
    pub fn to_try(&self) -> &[Box<RingKey<K, A>>] {
        &self.keys[self.stretch.clone()]
    }
}

impl<'a, K, A> IntoIterator for &'a FoundKeys<K, A> {
    type Item = &'a Box<RingKey<K, A>>;
    type IntoIter = slice::Iter<'a, Box<RingKey<K, A>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: PrepareKey, A> RingKey<K, A> {
    pub(super) fn prepare(entry: KeyEntry<A>) -> Result<Box<Self>, KeyError> {
        Ok(Box::new(Self { key: K::prepare(&entry.key)?, identity: Identity::new(entry.id, entry.attached) }))
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

impl<K, A> Clone for FoundKeys<K, A> {
    fn clone(&self) -> Self {
        Self { keys: Arc::clone(&self.keys), stretch: self.stretch.clone(), known: self.known }
    }
}

impl<K, A> fmt::Debug for FoundKeys<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundKeys").field("keys", &self.as_slice().len()).finish()
    }
}

impl<K, A> fmt::Debug for RingKey<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingKey").field("key_id", self.identity.key_id()).finish_non_exhaustive()
    }
}
