use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Key, KeyEntry, KeyError, KeyId, KeySet, KeySource, PrepareKey};
use crate::error::BoxError;
use crate::kdf::expand;

/// The minimum length of a master key, in bytes.
const MIN_MASTER_LEN: usize = 16;

/// The info of the derivation. The key id follows it.
const INFO: &[u8] = b"tower-challenge derived key v1";

/// A [`KeySource`] that derives the key of each id from one master key: one secret on the server, and a different key
/// for each client of a fleet.
///
/// The key of an id is HKDF-SHA-256 (RFC 5869) of the master key, without salt, with the info
/// `tower-challenge derived key v1` followed by the id; its length is 32 bytes. [`derive`](Self::derive) computes it
/// when a client is set up. A derived key reveals nothing about other derived keys or the master key. The master key
/// gives access to all of them.
///
/// A function decides which ids exist, and returns their metadata: refuse an id there to revoke its key. Sessions
/// that are open then continue: to end them, use a [`KeyStore`](super::KeyStore) that returns derived keys with
/// [`KeyEntry::with_revocation`]. The function is called with ids that unauthenticated peers choose, and should take the same time for ids that exist and ids that do not.
/// The key is derived in both cases.
///
/// ```
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge::{DerivedKeys, Key};
///
/// let master = Key::generate()?;
/// // Put this key on the device.
/// let device_key = DerivedKeys::derive(&master, &"device-7".parse()?)?;
///
/// // Accept all devices but one.
/// let keys = DerivedKeys::new(&master, |id: &[u8]| {
///     (id.starts_with(b"device-") && id != b"device-3").then_some(())
/// })?;
/// let server = mutual::Server::new(keys, Audience::new("collector")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DerivedKeys<F> {
    master: Arc<Hkdf<Sha256>>,
    find: F,
}

impl<F> DerivedKeys<F> {
    /// Creates a source of keys derived from `master`. `find`, a `Fn(&[u8]) -> Option<A>`, returns the metadata of an
    /// id, or `None` if the id does not exist.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Unsuitable`] if the master key has less than 16 bytes: the holder of a derived key could
    /// guess it.
    pub fn new(master: &Key, find: F) -> Result<Self, KeyError> {
        Ok(Self { master: extract(master)?, find })
    }
}

impl DerivedKeys<()> {
    /// Derives the key of `id`.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Unsuitable`] if the master key has less than 16 bytes.
    pub fn derive(master: &Key, id: &KeyId) -> Result<Key, KeyError> {
        Ok(derived(&*extract(master)?, id))
    }
}

fn extract(master: &Key) -> Result<Arc<Hkdf<Sha256>>, KeyError> {
    let master = master.expose_secret();
    if master.len() < MIN_MASTER_LEN {
        return Err(KeyError::Unsuitable(
            "a master key must have at least 16 bytes; 32 random bytes are recommended",
        ));
    }
    Ok(crate::kdf::extract(None, master))
}

fn derived(master: &Hkdf<Sha256>, id: &KeyId) -> Key {
    let mut key = Zeroizing::new(vec![0; Key::GENERATED_LEN]);
    expand(master, &[INFO, id.as_bytes()], &mut key);
    Key::checked(key).unwrap_or_else(|_| unreachable!("no input with an all-zero hash is known"))
}

/// The lookup completes immediately. It derives a key even if the id does not exist.
impl<K: PrepareKey, A, F: Fn(&[u8]) -> Option<A>> KeySource<K> for DerivedKeys<F> {
    type Metadata = A;
    type Lookup = Ready<Result<KeySet<K, A>, BoxError>>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let found = KeyId::new(id).and_then(|key_id| {
            let key = derived(&self.master, &key_id);
            KeySet::prepare_one(KeyEntry { id: key_id, key, metadata: (self.find)(id), revocation: None })
        });
        ready(found.map_err(Into::into))
    }
}

impl<F: Clone> Clone for DerivedKeys<F> {
    fn clone(&self) -> Self {
        Self { master: Arc::clone(&self.master), find: self.find.clone() }
    }
}

impl<F> fmt::Debug for DerivedKeys<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerivedKeys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected value was computed with Python's `hmac` after RFC 5869: extract with 32 zero bytes, expand with the
    /// info above.
    #[test]
    fn derivation_matches_test_vector() {
        let master = Key::new((0..32).collect::<Vec<u8>>()).unwrap();
        let key = DerivedKeys::derive(&master, &"device-7".parse().unwrap()).unwrap();
        assert_eq!(key.to_hex().as_str(), "e9cbddeb50cea23c967b42c10d9ee89dbad00ea3aa3784503401a23883e4198e");
        assert_ne!(
            DerivedKeys::derive(&master, &"device-8".parse().unwrap()).unwrap().to_hex().as_str(),
            key.to_hex().as_str()
        );
    }
}
