use std::fmt;
use std::sync::Arc;

use hmac::digest::block_api::BlockSizeUser;
use hmac::digest::{Digest as Hash, Output};
use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::{Sha256, Sha384};
use sha3::{Sha3_256, Sha3_384};
use zeroize::{Zeroize as _, Zeroizing};

use super::digest::{Digest, Legacy};
use crate::kdf::{expand, extract};
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::{new_hmac, wiping_stack};

/// The length of the longest tag, in bytes: that of the digests with 384 bits.
pub(super) const MAX_TAG_LEN: usize = 48;

/// The bytes that HMAC pads its key with, for the inner and the outer hash.
const IPAD: u8 = 0x36;
const OPAD: u8 = 0x5c;

/// The length of the mark in a client's challenge, in bytes, and also that of the random bytes before it.
pub(super) const MARK_LEN: usize = 20;

/// A key that is prepared for this mechanism: the initialized HMAC of each digest. Overwritten when dropped. Cheap to
/// clone.
#[derive(Clone)]
pub struct PreparedKey(Arc<Keyed>);

// Shared so that it is never moved: a move would leave a copy.
struct Keyed {
    sha256: Hmac<Sha256>,
    sha384: Hmac<Sha384>,
    md5: Hmac<Md5>,
    mark: Hmac<Sha256>,
    // HMAC with SHA-3 is computed from the key when it is needed, which is rare: CPython asks for SHA-3 only if its
    // caller names that digest.
    key: Key,
}

impl PreparedKey {
    /// Prepares `key`, which can have any length and has the same bytes as Python's `authkey`.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        let secret = key.expose_secret();
        // Derived in a way that differs from every answer of this protocol, so that no peer can be made to compute a
        // mark.
        let mut mark = Zeroizing::new([0; 32]);
        expand(
            &extract(Some(b"tower-challenge multiprocessing v1"), secret),
            &[b"client challenge"],
            &mut *mark,
        );
        Self(wiping_stack(|| {
            Arc::new(Keyed {
                sha256: new_hmac(secret),
                sha384: new_hmac(secret),
                md5: new_hmac(secret),
                mark: new_hmac(&*mark),
                key: key.clone(),
            })
        }))
    }

    /// Writes the tag of a message to the beginning of `out`. Returns its length.
    pub(super) fn tag(&self, digest: Digest, message: &[u8], out: &mut [u8; MAX_TAG_LEN]) -> usize {
        fn mac<M: Mac + Clone>(mac: &M, message: &[u8]) -> Output<M> {
            mac.clone().chain_update(message).finalize().into_bytes()
        }
        let mut put = |tag: &[u8]| {
            out[..tag.len()].copy_from_slice(tag);
            tag.len()
        };
        let Keyed { sha256, sha384, md5, key, .. } = &*self.0;
        wiping_stack(|| match digest {
            Digest::Sha256 => put(&mac(sha256, message)),
            Digest::Sha384 => put(&mac(sha384, message)),
            Digest::Sha3_256 => put(&sha3_hmac::<Sha3_256>(key, message)),
            Digest::Sha3_384 => put(&sha3_hmac::<Sha3_384>(key, message)),
            Digest::Md5 => put(&mac(md5, message)),
        })
    }

    /// Verifies, in constant time, the tag of a challenge that this side created. To be called in [`wiping_stack`].
    pub(super) fn is_valid(&self, message: &[u8], tag: &Tag<'_>) -> bool {
        let Keyed { sha256, md5, .. } = &*self.0;
        match tag {
            Tag::Sha256(tag) | Tag::LegacySha256(tag) => {
                sha256.clone().chain_update(message).verify_slice(&tag[..]).is_ok()
            }
            Tag::LegacyMd5(tag) => md5.clone().chain_update(message).verify_slice(&tag[..]).is_ok(),
        }
    }

    /// Returns the mark that follows `random` in a client's challenge.
    pub(super) fn mark(&self, random: &[u8]) -> [u8; MARK_LEN] {
        wiping_stack(|| {
            let mark = self.0.mark.clone().chain_update(random).finalize().into_bytes();
            *mark.first_chunk().expect("a digest of 32 bytes")
        })
    }

    /// Returns whether `message` ends in random bytes and their mark, as challenges of this crate's clients do.
    /// Compares in constant time.
    pub(super) fn has_mark(&self, message: &[u8]) -> bool {
        let Some((rest, mark)) = message.split_last_chunk::<MARK_LEN>() else { return false };
        let Some(random) = rest.last_chunk::<MARK_LEN>() else { return false };
        wiping_stack(|| self.0.mark.clone().chain_update(random).verify_truncated_left(mark).is_ok())
    }
}

/// Computes an HMAC (RFC 2104) with a digest of SHA-3, whose blocks have at most 136 bytes. `SimpleHmac` does the same
/// and leaves the padded key in memory.
fn sha3_hmac<D: Hash + BlockSizeUser>(key: &Key, message: &[u8]) -> Output<D> {
    let key = key.expose_secret();
    let mut block = Zeroizing::new([0; 136]);
    let block = &mut block[..D::block_size()];
    if key.len() <= block.len() {
        block[..key.len()].copy_from_slice(key);
    } else {
        let mut hash = D::digest(key);
        block[..hash.len()].copy_from_slice(&hash);
        hash.zeroize();
    }
    let mut hash = |pad: u8, message: &[u8]| {
        for byte in block.iter_mut() {
            *byte ^= pad;
        }
        D::new().chain_update(&block).chain_update(message).finalize()
    };
    let inner = hash(IPAD, message);
    // The block is padded already.
    hash(IPAD ^ OPAD, &inner)
}

/// The tag in an answer to a challenge of this side.
pub(super) enum Tag<'a> {
    Sha256(&'a [u8; 32]),
    LegacySha256(&'a [u8; 32]),
    LegacyMd5(&'a [u8; 16]),
}

impl Tag<'_> {
    /// Returns the dialect of a tag without the name of its digest.
    pub(super) fn legacy(&self) -> Option<Legacy> {
        match self {
            Self::Sha256(_) => None,
            Self::LegacySha256(_) => Some(Legacy::Sha256),
            Self::LegacyMd5(_) => Some(Legacy::Md5),
        }
    }
}

impl PrepareKey for PreparedKey {
    /// The server tries every key for every answer.
    const MAX_KEYS: usize = 64;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        Ok(Self::new(key))
    }

    fn macs_of_constant(&self) -> Vec<Vec<u8>> {
        use Digest::{Md5, Sha3_256, Sha3_384, Sha256, Sha384};

        [Md5, Sha256, Sha384, Sha3_256, Sha3_384]
            .map(|digest| {
                // Too short for a challenge.
                let mut tag = [0; MAX_TAG_LEN];
                let len = self.tag(digest, b"two ids?", &mut tag);
                tag[..len].to_vec()
            })
            .into()
    }
}

impl fmt::Debug for PreparedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use hmac::{KeyInit as _, SimpleHmac};

    use super::*;

    /// Computed with Python's `hmac`. Other versions of this crate must recognize the mark too, so it must not change.
    #[test]
    fn mark_test_vector() {
        let key = PreparedKey::new(&Key::new("key").unwrap());
        let random: Vec<u8> = (0..20).collect();
        let mark = key.mark(&random);
        assert_eq!(base16ct::lower::encode_string(&mark), "5468df806d38ff040353bcbe825f6e5be3b19fe7");
        let marked = [&b"{sha256}"[..], &random, &mark].concat();
        assert!(key.has_mark(&marked));
        assert!(!key.has_mark(&marked[..47]) && !key.has_mark(&mark) && !key.has_mark(b""));
    }

    #[test]
    fn sha3_hmac_equals_simple_hmac_for_keys_of_any_length() {
        fn check<D: Hash + BlockSizeUser>(len: usize) {
            let key = Key::new(vec![7; len]).unwrap();
            let message = b"{sha3_256} and a challenge";
            let expected = SimpleHmac::<D>::new_from_slice(key.expose_secret()).unwrap();
            let expected = expected.chain_update(message).finalize().into_bytes();
            assert_eq!(sha3_hmac::<D>(&key, message), expected, "{len} bytes");
        }
        for len in [1, 32, 103, 104, 105, 135, 136, 137, 200] {
            check::<Sha3_256>(len);
            check::<Sha3_384>(len);
        }
    }
}
