//! The symmetric state of Noise (revision 34, section 5.2), for the two messages of `NNpsk0`.

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Suite;
use super::cipher::{Cipher, TAG_LEN};
use crate::mechanism::new_hmac;

pub(super) type Hash = [u8; 32];
pub(super) type Secret = Zeroizing<[u8; 32]>;

// The functions of this module are called in `wiping_stack`.

/// Noise's `HKDF` with two outputs, which are also the first two of three.
pub(super) fn hkdf2(chaining_key: &[u8; 32], input: &[u8]) -> (Secret, Secret) {
    let temp = hmac(chaining_key, &[input]);
    let first = hmac(&temp, &[&[1]]);
    let second = hmac(&temp, &[&*first, &[2]]);
    (first, second)
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut mac: Hmac<Sha256> = new_hmac(key);
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// The hash of the protocol name, or the name itself if it is short (section 5.2, `InitializeSymmetric`).
pub(super) fn initial_hash(suite: Suite) -> Hash {
    let name = suite.protocol_name();
    let mut hash = [0; 32];
    match hash.get_mut(..name.len()) {
        Some(start) => start.copy_from_slice(name),
        None => hash = Sha256::digest(name).into(),
    }
    hash
}

/// `MixHash` of data that is given in parts.
pub(super) fn mix_hash(hash: &Hash, parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new_with_prefix(hash);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The state after the first token.
#[derive(Clone)]
pub(super) struct Symmetric {
    pub(super) suite: Suite,
    pub(super) chaining_key: Secret,
    pub(super) hash: Hash,
}

impl Symmetric {
    /// Mixes in a public key, as `e` does in patterns with a `psk` (section 9.2), or the result of a Diffie-Hellman for
    /// `ee`, which is not hashed. Returns the key for the next message.
    pub(super) fn mix_key(&mut self, input: &[u8]) -> Secret {
        let (chaining_key, key) = hkdf2(&self.chaining_key, input);
        self.chaining_key = chaining_key;
        key
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = mix_hash(&self.hash, &[data]);
    }

    /// Seals an empty payload: its tag.
    pub(super) fn seal(&mut self, key: &[u8; 32]) -> [u8; TAG_LEN] {
        let tag = Cipher::new(self.suite, key).seal(&self.hash, &mut []);
        self.mix_hash(&tag);
        tag
    }

    /// Opens an empty payload. Returns whether the tag is right.
    pub(super) fn open(&mut self, key: &[u8; 32], tag: &[u8; TAG_LEN]) -> bool {
        let mut sealed = *tag;
        let opened = Cipher::new(self.suite, key).open(&self.hash, &mut sealed).is_ok();
        self.mix_hash(tag);
        opened
    }

    /// `Split`: the ciphers from the client to the server, and back.
    pub(super) fn split(&self) -> (Cipher, Cipher) {
        let (up, down) = hkdf2(&self.chaining_key, &[]);
        (Cipher::new(self.suite, &up), Cipher::new(self.suite, &down))
    }
}
