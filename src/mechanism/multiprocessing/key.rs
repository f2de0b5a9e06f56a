use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, Mac, SimpleHmac};
use md5::Md5;
use sha2::{Sha256, Sha384};
use sha3::{Sha3_256, Sha3_384};
use zeroize::Zeroizing;

use super::digest::Digest;
use crate::kdf::expand;
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::keyed;

/// The longest tag, that of the digests of 384 bits, in bytes.
pub(super) const MAX_TAG_LEN: usize = 48;

/// How many bytes of a client's challenge are random, and how many are the mark that they bear.
pub(super) const MARK_LEN: usize = 20;

/// A key of this wire: HMAC with each digest, keyed already. Overwritten when dropped.
#[derive(Clone)]
pub struct PreparedKey {
    sha256: Hmac<Sha256>,
    sha384: Hmac<Sha384>,
    md5: Hmac<Md5>,
    mark: Hmac<Sha256>,
    // HMAC with SHA-3 would keep the key itself, and not overwrite it. CPython's listeners do not ask for it unless
    // they are told to, so it is keyed when it is needed.
    key: Key,
}

impl PreparedKey {
    /// A key of any length but none, as Python's `authkey` is.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        let secret = key.expose_secret();
        // Of a construction that no answer on this wire has, so that no peer can be brought to make a mark.
        let mut mark = Zeroizing::new([0; 32]);
        let derived = Hkdf::<Sha256>::new(Some(b"tower-challenge multiprocessing v1"), secret);
        expand(&derived, &[b"client challenge"], &mut *mark);
        Self {
            sha256: keyed(secret),
            sha384: keyed(secret),
            md5: keyed(secret),
            mark: keyed(&*mark),
            key: key.clone(),
        }
    }

    /// The tag of a message, put into `out`; how long it is.
    pub(super) fn tag(&self, digest: Digest, message: &[u8], out: &mut [u8; MAX_TAG_LEN]) -> usize {
        fn put(mac: impl Mac, message: &[u8], out: &mut [u8]) -> usize {
            let tag = mac.chain_update(message).finalize().into_bytes();
            out[..tag.len()].copy_from_slice(&tag);
            tag.len()
        }
        let secret = self.key.expose_secret();
        match digest {
            Digest::Sha256 => put(self.sha256.clone(), message, out),
            Digest::Sha384 => put(self.sha384.clone(), message, out),
            Digest::Sha3_256 => put(keyed::<SimpleHmac<Sha3_256>>(secret), message, out),
            Digest::Sha3_384 => put(keyed::<SimpleHmac<Sha3_384>>(secret), message, out),
            Digest::Md5 => put(self.md5.clone(), message, out),
        }
    }

    /// Whether this is the tag of a challenge of ours: with SHA-256, or with what stands for it in CPython up to
    /// 3.11. In constant time.
    pub(super) fn verify(&self, message: &[u8], tag: &Tag<'_>) -> bool {
        match tag {
            Tag::Sha256(tag) => self.sha256.clone().chain_update(message).verify_slice(&tag[..]).is_ok(),
            Tag::LegacyMd5(tag) => self.md5.clone().chain_update(message).verify_slice(&tag[..]).is_ok(),
        }
    }

    /// The mark that the client's random bytes bear.
    pub(super) fn mark(&self, random: &[u8]) -> [u8; MARK_LEN] {
        let mark = self.mark.clone().chain_update(random).finalize().into_bytes();
        *mark.first_chunk().expect("a digest of 32 bytes")
    }

    /// Whether these bytes end in a challenge of a client of ours. In constant time.
    pub(super) fn bears_mark(&self, message: &[u8]) -> bool {
        let Some((rest, mark)) = message.split_last_chunk::<MARK_LEN>() else { return false };
        let Some(random) = rest.last_chunk::<MARK_LEN>() else { return false };
        self.mark.clone().chain_update(random).verify_truncated_left(mark).is_ok()
    }
}

/// The tag in an answer to a challenge of ours.
pub(super) enum Tag<'a> {
    Sha256(&'a [u8; 32]),
    LegacyMd5(&'a [u8; 16]),
}

impl PrepareKey for PreparedKey {
    /// Every key is tried against every answer.
    const MAX_KEYS: usize = 64;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        Ok(Self::new(key))
    }
}

impl fmt::Debug for PreparedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac`. Hosts of another version must know the mark too, or do not refuse it.
    #[test]
    fn a_vector_of_the_mark() {
        let key = PreparedKey::new(&Key::new("key").unwrap());
        let random: Vec<u8> = (0..20).collect();
        let mark = key.mark(&random);
        assert_eq!(base16ct::lower::encode_string(&mark), "5468df806d38ff040353bcbe825f6e5be3b19fe7");
        let marked = [&b"{sha256}"[..], &random, &mark].concat();
        assert!(key.bears_mark(&marked));
        assert!(!key.bears_mark(&marked[..47]) && !key.bears_mark(&mark) && !key.bears_mark(b""));
    }
}
