use super::{Key, KeyError};

/// What a mechanism makes of a [`Key`] once, so that no handshake has to: a MAC that is keyed already, derived keys.
///
/// A key that does not suit the mechanism fails here, and so wherever keys come in ([`KeyRing::new`],
/// [`KeyRing::replace`], a [store](super::KeyStore)), never as a refusal of the peer. An implementation should
/// overwrite its memory when dropped, as RustCrypto's MACs do with their `zeroize` feature.
///
/// [`KeyRing::new`]: super::KeyRing::new
/// [`KeyRing::replace`]: super::KeyRing::replace
pub trait PrepareKey: Sized {
    /// How many keys a ring may hold unless its owner [raises it](super::KeyRing::with_max_keys). For a mechanism that
    /// must try each of them against every stranger; one that looks keys up by id needs no limit.
    const MAX_KEYS: usize = usize::MAX;

    /// How many keys may have the same id. For a mechanism that does the same work for every id, known or not: it tries
    /// so many.
    const MAX_KEYS_PER_ID: usize = usize::MAX;

    /// Prepares `key`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsuitable`] for a key that this mechanism can't use, too short a one say.
    fn prepare(key: &Key) -> Result<Self, KeyError>;
}
