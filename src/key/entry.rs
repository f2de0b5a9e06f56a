use std::fmt;
use std::sync::Arc;

use super::{Key, KeyError, KeyId};

/// A key, its id, and what the owner of the keys wants to know again about its holder: a name, roles, a quota.
///
/// Several entries with the same id are several keys of the same holder: that is how a key is rotated.
#[derive(Clone, Debug)]
pub struct KeyEntry<A = ()> {
    pub(super) id: KeyId,
    pub(super) key: Key,
    pub(super) attached: A,
}

impl KeyEntry {
    /// An entry with nothing attached.
    ///
    /// # Errors
    ///
    /// [`KeyError::IdLength`] for an id of no or more than 255 bytes.
    pub fn new(id: impl TryInto<KeyId, Error: Into<KeyError>>, key: Key) -> Result<Self, KeyError> {
        Ok(Self { id: id.try_into().map_err(Into::into)?, key, attached: () })
    }

    /// The same entry with `attached`, to be found again in [`Identity::attached`].
    #[must_use]
    pub fn attach<A>(self, attached: A) -> KeyEntry<A> {
        KeyEntry { id: self.id, key: self.key, attached }
    }
}

impl<A> KeyEntry<A> {
    /// The key's id.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// Who a peer has proven to be: the holder of the key with this id, and what the owner of the keys attached to it.
///
/// Cheap to clone, and independent of the ring that it came from: a session goes on when its key is replaced.
pub struct Identity<A = ()>(Arc<(KeyId, A)>);

impl<A> Identity<A> {
    /// An identity out of nowhere, for mechanisms outside this crate and for the unit tests of handlers.
    pub fn new(key_id: KeyId, attached: A) -> Self {
        Self(Arc::new((key_id, attached)))
    }

    /// The id of the key that the peer holds.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.0.0
    }

    /// What was attached to that key.
    #[must_use]
    pub fn attached(&self) -> &A {
        &self.0.1
    }
}

impl<A> Clone for Identity<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: fmt::Debug> fmt::Debug for Identity<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("key_id", self.key_id()).field("attached", self.attached()).finish()
    }
}
