use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{FoundKeys, Key, KeyEntry, KeyError, KeyId, Keys, LookupError, PrepareKey};
use crate::kdf::expand;

/// The shortest master key, in bytes.
const MIN_MASTER_LEN: usize = 16;

/// What the derivation is bound to. A key id follows.
const INFO: &[u8] = b"tower-challenge derived key v1";

/// Keys that are made of one master key and the id: one secret on the server, a key of its own for each of a fleet.
///
/// The key of an id is HKDF-SHA-256 (RFC 5869) of the master key, without salt, with the info
/// `tower-challenge derived key v1` and the id behind it; 32 bytes. [`derive`](Self::derive) makes it when a member of
/// the fleet is set up. Whoever has one such key learns nothing of another, nor of the master key; whoever has the
/// master key has all of them.
///
/// A function says which ids there are, and what is attached to each: that is where a key is revoked. It is called for
/// ids that strangers choose, and should take the same time for those that there are and those that there are not; the
/// derivation does, since it is made for both.
///
/// ```
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge::{DerivedKeys, Key};
///
/// let master = Key::generate()?;
/// let for_device_7 = DerivedKeys::derive(&master, &"device-7".parse()?)?; // give it to the device
///
/// let keys = DerivedKeys::new(&master, |id: &[u8]| (id.starts_with(b"device-") && id != b"device-3").then_some(()))?;
/// let server = mutual::Server::new(keys, Audience::new("collector")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DerivedKeys<F> {
    master: Arc<Hkdf<Sha256>>,
    find: F,
}

impl<F> DerivedKeys<F> {
    /// Keys derived from `master`, of the ids for which `find`, a `Fn(&[u8]) -> Option<A>`, has something to attach.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsuitable`] for a master key of less than 16 bytes: each member of the fleet could find it out.
    pub fn new(master: &Key, find: F) -> Result<Self, KeyError> {
        Ok(Self { master: Arc::new(extract(master)?), find })
    }
}

impl DerivedKeys<()> {
    /// The key of an id.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsuitable`] for a master key of less than 16 bytes.
    pub fn derive(master: &Key, id: &KeyId) -> Result<Key, KeyError> {
        Ok(derived(&extract(master)?, id))
    }
}

fn extract(master: &Key) -> Result<Hkdf<Sha256>, KeyError> {
    let master = master.expose_secret();
    if master.len() < MIN_MASTER_LEN {
        return Err(KeyError::Unsuitable(
            "a master key has at least 16 bytes, and 32 random ones are the advice",
        ));
    }
    Ok(Hkdf::new(None, master))
}

fn derived(master: &Hkdf<Sha256>, id: &KeyId) -> Key {
    let mut key = Zeroizing::new(vec![0; Key::GENERATED_LEN]);
    expand(master, &[INFO, id.as_bytes()], &mut key);
    Key::checked(key).unwrap_or_else(|_| unreachable!("a hash that is zero has yet to be found"))
}

/// Derives at once, also for ids that there are not.
impl<K: PrepareKey, A, F: Fn(&[u8]) -> Option<A>> Keys<K> for DerivedKeys<F> {
    type Attached = A;
    type Lookup = Ready<Result<FoundKeys<K, A>, LookupError>>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let found = KeyId::new(id).and_then(|key_id| {
            let key = derived(&self.master, &key_id);
            let entry = KeyEntry::new(key_id, key)?;
            FoundKeys::prepare(id, (self.find)(id).map(|attached| entry.attach(attached)))
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

    /// Computed with Python's `hmac` from RFC 5869: extract with 32 zero bytes, expand with the info above.
    #[test]
    fn a_vector() {
        let master = Key::new((0..32).collect::<Vec<u8>>()).unwrap();
        let key = DerivedKeys::derive(&master, &"device-7".parse().unwrap()).unwrap();
        assert_eq!(key.to_hex().as_str(), "e9cbddeb50cea23c967b42c10d9ee89dbad00ea3aa3784503401a23883e4198e");
        assert_ne!(
            DerivedKeys::derive(&master, &"device-8".parse().unwrap()).unwrap().to_hex().as_str(),
            key.to_hex().as_str()
        );
    }
}
