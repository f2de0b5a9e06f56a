use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Suite;
use super::symmetric::{Hash, Mac, hkdf2, initial_hash};
use crate::kdf::{expand, extract};
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::wiping_stack;

/// The name of the protocol: the salt of the derived key, and the first field of the prologue.
pub(super) const PROTOCOL: &[u8] = b"tower-challenge noise v1";

/// A key that is prepared for this mechanism: the state after `MixKeyAndHash(psk)` for each suite. Overwritten when
/// dropped. Cheap to clone.
// Shared so that it is never moved: a move would leave a copy.
#[derive(Clone)]
pub struct PreparedKey(Arc<[PskState; Suite::ALL.len()]>);

/// What follows from the key and the suite alone.
pub(super) struct PskState {
    /// Keyed with the chaining key.
    pub(super) chaining_key: Mac,
    /// To be hashed after the prologue.
    pub(super) psk_hash: Zeroizing<Hash>,
}

impl PreparedKey {
    /// The shortest key, in bytes. 32 random bytes are recommended: [`Key::generate`].
    pub const MIN_KEY_LEN: usize = 16;

    pub(super) fn state(&self, suite: Suite) -> &PskState {
        &self.0[suite as usize]
    }

    pub(super) fn derive(key: &[u8]) -> Self {
        let prk = extract(Some(PROTOCOL), key);
        Self(wiping_stack(|| {
            let mut psk = Zeroizing::new([0; 32]);
            expand(&prk, &[b"psk"], &mut *psk);
            Arc::new(Suite::ALL.map(|suite| {
                // The third output of `MixKeyAndHash` is a key that `NNpsk0` replaces before its first use.
                let (chaining_key, psk_hash) = hkdf2(&initial_hash(suite), &*psk);
                PskState { chaining_key: Mac::new(&chaining_key), psk_hash }
            }))
        }))
    }

    /// A key that replaces the key of an unknown id. A match with it does not count, so it need not be secret.
    pub(super) fn decoy() -> Self {
        Self::derive(b"decoy for an id without a key")
    }
}

impl PrepareKey for PreparedKey {
    /// As many keys are tried for every client, whatever its id.
    const MAX_KEYS_PER_ID: usize = 4;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        let key = key.expose_secret();
        if key.len() < Self::MIN_KEY_LEN {
            return Err(KeyError::Unsuitable(
                "noise requires at least 16 bytes; 32 random bytes are recommended",
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
