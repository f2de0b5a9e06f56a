use std::fmt;

use hmac::digest::Output;
use hmac::{EagerHash, Hmac, Mac as _};
use md5::Md5;

use crate::key::{Key, KeyError, PrepareKey};
use crate::mechanism::{new_hmac, wiping_stack};

/// A digest that HMAC supports: those of RustCrypto, such as MD5, SHA-1 and SHA-2, for version 0.11 of the `digest`
/// crate.
pub trait HmacDigest: EagerHash<Core: Send + Sync> + 'static {}

impl<D: EagerHash<Core: Send + Sync> + 'static> HmacDigest for D {}

/// A key that is prepared for this mechanism: the initialized HMAC.
///
/// It is overwritten when dropped, if the `zeroize` feature of the digest's crate is on. That of MD5 is on.
///
/// [`sign`](Self::sign) and [`verify`](Self::verify) are for a [mechanism](crate::mechanism) of your own that needs an
/// HMAC, with the keys in a [`KeyRing`](crate::KeyRing):
///
/// ```
/// use tower_challenge::key::KeyRing;
/// use tower_challenge::one_way::PreparedKey;
/// use tower_challenge::{Key, KeyEntry};
///
/// let key = Key::new("This is key!")?;
/// let ring: KeyRing<PreparedKey> =
///     KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
///
/// // The client computes the tag of a message that the server chose.
/// let key: PreparedKey = PreparedKey::new(&key);
/// let tag = key.sign(b"message");
///
/// // The server tries all of its keys.
/// let keys = ring.snapshot();
/// let is_valid = |tried: &PreparedKey| tried.verify(b"message", &tag);
/// let matching: Vec<_> = keys.iter().filter(|k| is_valid(k.key())).collect();
/// assert_eq!(matching[0].identity().key_id(), &"alice");
/// # Ok::<(), tower_challenge::KeyError>(())
/// ```
pub struct PreparedKey<D: HmacDigest = Md5> {
    // Boxed so that it is never moved: a move would leave a copy.
    mac: Box<Hmac<D>>,
}

impl<D: HmacDigest> PreparedKey<D> {
    /// Prepares `key`, which can have any length.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self { mac: wiping_stack(|| Box::new(new_hmac(key.expose_secret()))) }
    }

    /// Returns the HMAC of `message`, an array of bytes: 16 with MD5.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Output<Hmac<D>> {
        wiping_stack(|| self.mac(message).finalize().into_bytes())
    }

    /// Returns whether `tag` is the HMAC of `message`, in constant time. A truncated tag is not valid.
    #[must_use]
    pub fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        wiping_stack(|| self.is_valid(message, tag))
    }

    /// Like [`verify`](Self::verify), for the use in [`wiping_stack`].
    pub(super) fn is_valid(&self, message: &[u8], tag: &[u8]) -> bool {
        self.mac(message).verify_slice(tag).is_ok()
    }

    fn mac(&self, message: &[u8]) -> Hmac<D> {
        (*self.mac).clone().chain_update(message)
    }
}

impl<D: HmacDigest> PrepareKey for PreparedKey<D> {
    /// The server tries every key for every answer.
    const MAX_KEYS: usize = 64;

    fn prepare(key: &Key) -> Result<Self, KeyError> {
        Ok(Self::new(key))
    }

    fn macs_of_constant(&self) -> Vec<Vec<u8>> {
        // Not a message of this mechanism, which are nonces of 32 bytes.
        vec![self.sign(b"one key under two ids?").to_vec()]
    }
}

impl<D: HmacDigest> fmt::Debug for PreparedKey<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static_assertions::assert_impl_all!(PreparedKey: Send, Sync);
    static_assertions::assert_impl_all!(md5::block_api::Md5Core: zeroize::ZeroizeOnDrop);

    /// RFC 2202, section 2: the two cases whose data cannot be a nonce, one too short and one too long. The test
    /// `one_way` runs the other cases through whole handshakes.
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
            assert_eq!(base16ct::lower::encode_string(&key.sign(data)), digest);
        }
    }
    #[test]
    fn verifies_what_it_signs() {
        let [key, other] =
            ["key", "another key"].map(|text| PreparedKey::<Md5>::new(&Key::new(text).unwrap()));
        let tag = key.sign(b"message");
        assert_eq!(tag.len(), 16);
        assert!(key.verify(b"message", &tag));
        assert!(!key.verify(b"another message", &tag) && !other.verify(b"message", &tag));
        assert!(!key.verify(b"message", &tag[..15]) && !key.verify(b"message", b""));
        assert!(!key.verify(b"message", &[&tag[..], &[0]].concat()));
        for bit in 0..128 {
            let mut flipped = tag;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify(b"message", &flipped));
        }
    }
}

/// Measures time, which means nothing without optimizations: `cargo test --release`.
#[cfg(all(test, not(debug_assertions)))]
mod constant_time {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use hmac::digest::block_api::{
        Block, BlockSizeUser, Buffer, BufferKindUser, Eager, FixedOutputCore, OutputSizeUser, UpdateCore,
    };
    use hmac::digest::{HashMarker, consts};

    use super::*;

    /// A digest that is computed much faster than two of its outputs are compared byte by byte.
    #[derive(Clone, Default)]
    struct WideCore;

    impl HashMarker for WideCore {}

    impl BlockSizeUser for WideCore {
        type BlockSize = consts::U128;
    }

    impl BufferKindUser for WideCore {
        type BufferKind = Eager;
    }

    impl OutputSizeUser for WideCore {
        type OutputSize = consts::U8192;
    }

    impl UpdateCore for WideCore {
        fn update_blocks(&mut self, _: &[Block<Self>]) {}
    }

    impl FixedOutputCore for WideCore {
        fn finalize_fixed_core(&mut self, _: &mut Buffer<Self>, out: &mut Output<Self>) {
            out.fill(7);
        }
    }

    hmac::digest::buffer_fixed!(
        #[derive(Clone, Default)]
        struct Wide(WideCore);
        impl: BaseFixedTraits HashMarker;
    );

    /// A comparison that stops at the first difference takes no longer than signing.
    #[test]
    fn verification_compares_all_bytes_of_the_tag() {
        let key = PreparedKey::<Wide>::new(&Key::new("key").unwrap());
        let mut tag = key.sign(b"message");
        assert!(key.verify(b"message", &tag));
        tag[0] ^= 1;
        let fastest = |run: &dyn Fn()| -> Duration {
            let time = || {
                let begin = Instant::now();
                run();
                begin.elapsed()
            };
            (0..200).map(|_| time()).min().unwrap()
        };
        let sign = fastest(&|| _ = black_box(key.sign(b"message")));
        let verify = fastest(&|| assert!(!key.verify(b"message", &tag)));
        assert!(verify > 2 * sign, "{verify:?} to verify, {sign:?} to sign");
    }
}
