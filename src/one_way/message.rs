use std::fmt;

use hmac::Hmac;
use hmac::digest::Output;
use md5::Md5;

use super::HmacDigest;

/// The server's challenge: random bytes. The [`Wire`](super::Wire) sets their number.
#[derive(Clone)]
pub struct Nonce {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl Nonce {
    /// The longest nonce, in bytes.
    pub(super) const MAX_LEN: usize = 64;

    /// Creates a nonce of `len` zero bytes, at most [`MAX_LEN`](Self::MAX_LEN).
    pub(super) fn zeroed(len: u8) -> Self {
        debug_assert!(usize::from(len) <= Self::MAX_LEN);
        Self { bytes: [0; Self::MAX_LEN], len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
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
pub struct Answer<D: HmacDigest = Md5>(pub(super) Output<Hmac<D>>);

impl<D: HmacDigest> Answer<D> {
    /// Returns the bytes, 16 with MD5.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<D: HmacDigest> fmt::Debug for Answer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(..)")
    }
}

/// A message of the server. The [`Wire`](super::Wire) sets the bytes of the verdicts.
#[derive(Clone, Debug)]
pub enum ServerMessage {
    /// The first message.
    Challenge(Nonce),
    /// The answer was right. The application's data follow.
    Accepted,
    /// The answer was wrong. The server closes the connection.
    Refused,
}
