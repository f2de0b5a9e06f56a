use std::fmt;

use hmac::{EagerHash, Hmac, Mac as _};
use md5::Md5;

use super::message::{Answer, Nonce};
use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::keyed;

/// A digest that HMAC can be made of: RustCrypto's MD5, SHA-1, SHA-2 and so on, of the `digest` crate's version 0.11.
pub trait Digest: EagerHash<Core: Send + Sync> + 'static {}

impl<D: EagerHash<Core: Send + Sync> + 'static> Digest for D {}

/// A key of this wire: HMAC, keyed already. Overwritten when dropped (with the `zeroize` feature of the digest's crate;
/// MD5's is on).
pub struct PreparedKey<D: Digest = Md5> {
    mac: Hmac<D>,
}

impl<D: Digest> PreparedKey<D> {
    /// A key of any length but none.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self { mac: keyed(key.expose_secret()) }
    }

    pub(super) fn answer(&self, nonce: &Nonce) -> Answer<D> {
        Answer(self.mac(nonce.as_bytes()).finalize().into_bytes())
    }

    /// In constant time.
    pub(super) fn verify(&self, nonce: &Nonce, answer: &Answer<D>) -> bool {
        self.mac(nonce.as_bytes()).verify(&answer.0).is_ok()
    }

    fn mac(&self, data: &[u8]) -> Hmac<D> {
        self.mac.clone().chain_update(data)
    }
}

impl<D: Digest> PrepareKey for PreparedKey<D> {
    /// Every key is tried against every answer.
    const MAX_KEYS: usize = 64;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        Ok(Self::new(key))
    }
}

impl<D: Digest> fmt::Debug for PreparedKey<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static_assertions::assert_impl_all!(PreparedKey: Send, Sync);
    static_assertions::assert_impl_all!(md5::block_api::Md5Core: zeroize::ZeroizeOnDrop);

    /// RFC 2202, section 2: the two cases whose data are no nonce, one too short and one too long. The others go
    /// through whole handshakes in `tests/one_way.rs`.
    #[test]
    fn rfc_2202_cases_1_and_7() {
        let cases: [(&[u8], &[u8], &str); 2] = [
            (&[0x0b; 16], b"Hi There", "9294727a3638bb1c13f48ef8158bfc9d"),
            (
                &[0xaa; 80],
                b"Test Using Larger Than Block-Size Key and Larger Than One Block-Size Data",
                "6f630fad67cda0ee1fb1f562db3aa53e",
            ),
        ];
        for (key, data, digest) in cases {
            let key: PreparedKey = PreparedKey::new(&Key::new(key).unwrap());
            assert_eq!(base16ct::lower::encode_string(&key.mac(data).finalize().into_bytes()), digest);
        }
    }
}
