use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use hmac::Hmac;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::encode::PROTOCOL;
use crate::kdf::{expand, extract};
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::{new_hmac, wiping_stack};

/// The key for the work that an unknown id costs. A proof that matches it does not count, so it need not be secret.
pub(super) const DECOY: &[u8] = b"decoy key for unknown key ids";

/// A key that is prepared for this mechanism: the keys for each role that are derived from it. Overwritten when
/// dropped. Cheap to clone.
#[derive(Clone)]
pub struct PreparedKey(Arc<Keys>);

// Shared so that they are never moved: a move would leave a copy.
struct Keys {
    client: Hmac<Sha256>,
    server: Hmac<Sha256>,
    exporter: Arc<Hkdf<Sha256>>,
}

impl PreparedKey {
    /// The length of the shortest key, in bytes. 32 random bytes are recommended, see [`Key::generate`].
    pub const MIN_KEY_LEN: usize = 16;

    fn derive(key: &[u8]) -> Self {
        let prk = extract(Some(PROTOCOL), key);
        Self(wiping_stack(|| {
            let (client, server) = (mac(&prk, b"client proof"), mac(&prk, b"server proof"));
            Arc::new(Keys { client, server, exporter: prk })
        }))
    }

    pub(super) fn decoy() -> Self {
        Self::derive(DECOY)
    }

    pub(super) fn client(&self) -> &Hmac<Sha256> {
        &self.0.client
    }

    pub(super) fn server(&self) -> &Hmac<Sha256> {
        &self.0.server
    }

    pub(super) fn exporter(&self) -> &Hkdf<Sha256> {
        &self.0.exporter
    }
}

fn mac(prk: &Hkdf<Sha256>, info: &[u8]) -> Hmac<Sha256> {
    let mut key = Zeroizing::new([0; 32]);
    expand(prk, &[info], &mut *key);
    new_hmac(&*key)
}

impl PrepareKey for PreparedKey {
    /// The server computes this number of MACs for every proof, whatever the id.
    const MAX_KEYS_PER_ID: usize = 4;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        let key = key.expose_secret();
        if key.len() < Self::MIN_KEY_LEN {
            return Err(KeyError::Unsuitable(
                "the mechanism `mutual` requires at least 16 bytes; 32 random bytes are recommended",
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
