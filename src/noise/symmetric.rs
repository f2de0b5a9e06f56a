//! The symmetric state of Noise (revision 34, section 5.2), for the two messages of `NNpsk0`.

use sha2::block_api::compress256;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Suite;
use super::cipher::{Cipher, TAG_LEN};

pub(super) type Hash = [u8; 32];
pub(super) type Secret = Zeroizing<[u8; 32]>;

// The functions of this module are called in `wiping_stack`.

/// Noise's `HKDF` with two outputs, which are also the first two of three.
pub(super) fn hkdf2(chaining_key: &[u8; 32], input: &[u8]) -> (Secret, Secret) {
    Mac::new(chaining_key).hkdf2(input)
}

/// The length of a block of SHA-256, in bytes.
const BLOCK_LEN: usize = 64;

/// The state of SHA-256 between two blocks.
type Sha256State = [u32; 8];

/// The first state (FIPS 180-4, section 5.3.3).
const FIRST_STATE: Sha256State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// HMAC-SHA-256 with a key of 32 bytes, of messages that fit one block: the states after the padded key (RFC 2104, section
/// 4). Apart from the Diffie-Hellman, a handshake is mostly this, so nothing is computed twice.
pub(super) struct Mac {
    inner: Zeroizing<Sha256State>,
    outer: Zeroizing<Sha256State>,
}

impl Mac {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let keyed = |pad| {
            let mut block = [pad; BLOCK_LEN];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            let mut state = FIRST_STATE;
            compress256(&mut state, &[block]);
            Zeroizing::new(state)
        };
        Self { inner: keyed(0x36), outer: keyed(0x5c) }
    }

    /// The message is given in parts, which together have at most 55 bytes.
    #[inline]
    fn mac(&self, parts: &[&[u8]]) -> Secret {
        let inner = hash_second_block(&self.inner, parts);
        hash_second_block(&self.outer, &[&*inner])
    }

    pub(super) fn hkdf2(&self, input: &[u8]) -> (Secret, Secret) {
        let temp = Self::new(&self.mac(&[input]));
        let first = temp.mac(&[&[1]]);
        let second = temp.mac(&[&*first, &[2]]);
        (first, second)
    }

    /// The first output of `HKDF`.
    fn hkdf1(&self, input: &[u8]) -> Secret {
        Self::new(&self.mac(&[input])).mac(&[&[1]])
    }
}

/// Hashes the second and last block of a message, which is given in parts.
#[inline]
fn hash_second_block(state: &Sha256State, parts: &[&[u8]]) -> Secret {
    let mut block = [0; BLOCK_LEN];
    let mut len = 0;
    for part in parts {
        block[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    let (message, bit_len) = block.split_at_mut(BLOCK_LEN - 8);
    // The padding (FIPS 180-4, section 5.1.1). It fits, or this panics.
    message[len] = 0x80;
    bit_len.copy_from_slice(&(8 * (BLOCK_LEN + len) as u64).to_be_bytes());
    let mut state = *state;
    compress256(&mut state, &[block]);
    let mut hash = Zeroizing::new([0; 32]);
    hash.chunks_exact_mut(4).zip(state).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_be_bytes()));
    hash
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

    /// Mixes in a public key like [`mix_key`](Self::mix_key), if no message is sealed with the key.
    pub(super) fn mix_chaining_key(&mut self, input: &[u8]) {
        self.chaining_key = Mac::new(&self.chaining_key).hkdf1(input);
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

    /// Opens an empty payload: whether the tag is right. It must be hashed afterwards.
    pub(super) fn opens(&self, key: &[u8; 32], tag: &[u8; TAG_LEN]) -> bool {
        let mut sealed = *tag;
        Cipher::new(self.suite, key).open(&self.hash, &mut sealed).is_ok()
    }

    /// `Split`: the ciphers from the client to the server, and back.
    pub(super) fn split(&self) -> (Cipher, Cipher) {
        let (up, down) = hkdf2(&self.chaining_key, &[]);
        (Cipher::new(self.suite, &up), Cipher::new(self.suite, &down))
    }
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, Mac as _};

    use super::*;
    use crate::mechanism::new_hmac;

    #[test]
    fn mac_is_hmac_sha256() {
        let message: Vec<u8> = (0..55).collect();
        for key in [[0; 32], [0xa5; 32]] {
            for len in 0..=message.len() {
                let (first, second) = message[..len].split_at(len / 3);
                let expected: Hmac<Sha256> = new_hmac(&key);
                let expected = expected.chain_update(&message[..len]).finalize().into_bytes();
                assert_eq!(Mac::new(&key).mac(&[first, second])[..], expected[..], "{len} bytes");
            }
        }
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn mac_of_a_longer_message_panics() {
        Mac::new(&[0; 32]).mac(&[&[0; 56]]);
    }
}
