use std::fmt;

use hkdf::Hkdf;
use hmac::Hmac;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::encode::PROTOCOL;
use crate::kdf::expand;
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::keyed;

/// A key of this wire: what is derived from it for each role. Overwritten when dropped.
#[derive(Clone)]
pub struct PreparedKey {
    pub(super) client: Hmac<Sha256>,
    pub(super) server: Hmac<Sha256>,
    pub(super) exporter: Hkdf<Sha256>,
}

impl PreparedKey {
    /// The shortest key, in bytes. 32 random ones are the advice: [`Key::generate`].
    pub const MIN_KEY_LEN: usize = 16;

    fn derive(key: &[u8]) -> Self {
        let prk = Hkdf::<Sha256>::new(Some(PROTOCOL), key);
        Self { client: mac(&prk, b"client proof"), server: mac(&prk, b"server proof"), exporter: prk }
    }

    /// A key that nobody has a proof for, to do the work of a real one where there is none. What verifies against it
    /// counts for nothing, so that it need not be a secret.
    pub(super) fn decoy() -> Self {
        Self::derive(b"in the place of a key that there is not")
    }
}

fn mac(prk: &Hkdf<Sha256>, info: &[u8]) -> Hmac<Sha256> {
    let mut key = Zeroizing::new([0; 32]);
    expand(prk, &[info], &mut *key);
    keyed(&*key)
}

impl PrepareKey for PreparedKey {
    /// As many MACs are computed for every proof, whatever the id.
    const MAX_KEYS_PER_ID: usize = 4;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        let key = key.expose_secret();
        if key.len() < Self::MIN_KEY_LEN {
            return Err(KeyError::Unsuitable(
                "mutual wants at least 16 bytes, and 32 random ones are the advice",
            ));
        }
        Ok(Self::derive(key))
    }
}

impl fmt::Debug for PreparedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedKey(..)")
    }
}
