use std::fmt;
use std::sync::Arc;

use super::{Key, KeyError, KeyId, Revocation};

/// A key with its id, and optionally with metadata about its holder: a name, roles, a quota.
///
/// Several entries with the same id are several keys of the same holder. This is how a key is rotated.
#[derive(Clone, Debug)]
pub struct KeyEntry<A = ()> {
    pub(super) id: KeyId,
    pub(super) key: Key,
    pub(super) metadata: A,
    pub(super) revocation: Option<Revocation>,
}

impl KeyEntry {
    /// Creates an entry without metadata.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::IdLength`] unless the id has 1 to 255 bytes.
    pub fn new(id: impl TryInto<KeyId, Error: Into<KeyError>>, key: Key) -> Result<Self, KeyError> {
        Ok(Self { id: id.try_into().map_err(Into::into)?, key, metadata: (), revocation: None })
    }

    /// Attaches `metadata`, which the server gets back as [`Identity::metadata`].
    #[must_use]
    pub fn with_metadata<A>(self, metadata: A) -> KeyEntry<A> {
        KeyEntry { id: self.id, key: self.key, metadata, revocation: self.revocation }
    }
}

impl<A> KeyEntry<A> {
    /// Sets how sessions of this key learn that it is revoked, for key sources of your own, see
    /// [`Revoker`](super::Revoker). A [`KeyRing`](super::KeyRing) does this itself.
    #[must_use]
    pub fn with_revocation(mut self, revocation: Revocation) -> Self {
        self.revocation = Some(revocation);
        self
    }

    /// Adds a revocation if there is none.
    pub(super) fn revocable(mut self) -> Self {
        self.revocation.get_or_insert_with(Revocation::new);
        self
    }

    /// Returns the id of the key.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// The identity of an authenticated peer: the id of the key that it holds, and the metadata of that key.
///
/// Cheap to clone. It is independent of the ring that the key was in: a session continues when its key is replaced.
pub struct Identity<A = ()>(Arc<Inner<A>>);

struct Inner<A> {
    key_id: KeyId,
    metadata: A,
    revocation: Option<Revocation>,
}

impl<A> Identity<A> {
    /// Creates an identity without authentication, for unit tests of handlers.
    #[cfg(feature = "test-util")]
    pub fn new(key_id: KeyId, metadata: A) -> Self {
        Self::of(key_id, metadata, None)
    }

    pub(super) fn of(key_id: KeyId, metadata: A, revocation: Option<Revocation>) -> Self {
        Self(Arc::new(Inner { key_id, metadata, revocation }))
    }

    /// Returns the id of the key that the peer holds.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.0.key_id
    }

    /// Returns the metadata of that key.
    #[must_use]
    pub fn metadata(&self) -> &A {
        &self.0.metadata
    }

    /// Returns the revocation of the key that the peer has proven to hold.
    ///
    /// Always `Some` if the key is from a [`KeyRing`](super::KeyRing). Another source sets it for the keys that it can
    /// revoke, with [`KeyEntry::with_revocation`].
    #[must_use]
    pub fn revocation(&self) -> Option<&Revocation> {
        self.0.revocation.as_ref()
    }
}

impl<A> Clone for Identity<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: fmt::Debug> fmt::Debug for Identity<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("key_id", self.key_id()).field("metadata", self.metadata()).finish()
    }
}
