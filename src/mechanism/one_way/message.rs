use std::fmt;

use hmac::Hmac;
use hmac::digest::Output;
use md5::Md5;

use super::Digest;

/// The server's challenge: random bytes, as many as the [`Wire`](super::Wire) says.
#[derive(Clone)]
pub struct Nonce {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl Nonce {
    /// The longest, in bytes.
    pub const MAX_LEN: usize = 64;

    /// A nonce of `len` bytes, at most [`MAX_LEN`](Self::MAX_LEN), all zero until they are filled.
    pub(super) fn zeroed(len: u8) -> Self {
        debug_assert!(usize::from(len) <= Self::MAX_LEN);
        Self { bytes: [0; Self::MAX_LEN], len }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// The client's answer: HMAC(key, nonce).
#[derive(Clone)]
pub struct Answer<D: Digest = Md5>(pub(super) Output<Hmac<D>>);

impl<D: Digest> Answer<D> {
    /// The bytes, 16 with MD5.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<D: Digest> fmt::Debug for Answer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(..)")
    }
}

/// What the server sends. The [`Wire`](super::Wire) says which bytes a verdict is.
#[derive(Clone, Debug)]
pub enum ServerMessage {
    /// First of all.
    Challenge(Nonce),
    /// The answer was right; the application's data follow.
    Accepted,
    /// The answer was wrong; the server closes.
    Refused,
}
