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
/// takes the same time. In a ring it does, and with derived keys. A [store](super::KeyStore) prepares what it finds:
/// an id with several keys, as while one is rotated, takes some microseconds more than one with none or one. And a
/// remote store that answers faster for ids that it does not have, or has not cached, tells them apart to whoever has
/// a clock; have it take its time in both cases where ids must not be found out.
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
    /// The keys of `id`, for a source of one's own. Of an unknown id there are none, which costs as much as one.
    ///
    /// # Errors
    ///
    /// [`KeyError::AnotherId`] for a key of another id, and what the mechanism has against one of the keys or against
    /// so many: a [`LookupError`] to be passed on.
    pub fn prepare(id: &[u8], entries: impl IntoIterator<Item = KeyEntry<A>>) -> Result<Self, KeyError> {
        let prepare = |entry: KeyEntry<A>| {
            if entry.id().as_bytes() == id {
                RingKey::prepare(entry)
            } else {
                Err(KeyError::AnotherId(entry.id))
            }
        };
        let keys = entries.into_iter().map(prepare).collect::<Result<Arc<[_]>, KeyError>>()?;
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
        if self.known { self.stretch() } else { &[] }
    }

    /// Keys to do the work with, whether any were found or not: for a mechanism that is to take the same time for an
    /// id that is not known. In the order of [`as_slice`](Self::as_slice); where that is empty they are another's, or
    /// none, and **what verifies against them counts for nothing.** So they do not say whose they are.
    pub fn keys_to_try(&self) -> impl Iterator<Item = &K> {
        self.stretch().iter().map(|key| &key.key)
    }

    fn stretch(&self) -> &[Box<RingKey<K, A>>] {
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
