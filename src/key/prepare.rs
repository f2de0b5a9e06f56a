use super::{Key, KeyError};

/// The form of a [`Key`] that a mechanism computes once rather than in each handshake, such as a keyed MAC or derived
/// keys.
///
/// A key that the mechanism cannot use fails here, and therefore when keys are loaded ([`KeyRing::new`],
/// [`KeyRing::replace`], a lookup in a [`KeyStore`](super::KeyStore)), and not as a refusal of the peer. An
/// implementation should overwrite its memory on drop, as RustCrypto's MACs do with their `zeroize` feature.
///
/// [`KeyRing::new`]: super::KeyRing::new
/// [`KeyRing::replace`]: super::KeyRing::replace
pub trait PrepareKey: Sized {
    /// The default maximum of keys in a ring, see [`KeyRing::with_max_keys`](super::KeyRing::with_max_keys). For
    /// mechanisms that must try all keys for each peer. Mechanisms that look keys up by id need no limit.
    const MAX_KEYS: usize = usize::MAX;

    /// The maximum of keys with the same id. For mechanisms that do the same work for every id, known or not: they
    /// always try this many.
    const MAX_KEYS_PER_ID: usize = usize::MAX;

    /// Prepares `key`.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Unsuitable`] for a key that this mechanism cannot use, e.g. because it is too short. The
    /// source of the key adds its id.
    fn prepare(key: &Key) -> Result<Self, KeyError>;

    /// Returns a MAC of one constant under each function that the mechanism uses with this key, if it identifies a peer
    /// by its key and sends no key id. The default is none.
    ///
    /// A [`KeyRing`](super::KeyRing) compares them to refuse one key under two ids. The keys themselves do not tell: HMAC
    /// pads short keys with zeros and hashes long ones, so that different keys can give the same MACs.
    fn macs_of_constant(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}
