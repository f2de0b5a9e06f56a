use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::Suite;
use crate::mechanism::wiping_stack;

/// The length of a tag, in bytes.
pub(super) const TAG_LEN: usize = 16;

/// After this many records a direction is rekeyed.
const REKEY_EVERY: u64 = 1 << 20;

/// A cipher state of Noise (revision 34, section 5.1): a key and the counter that its nonces come from.
///
/// aws-lc overwrites the memory of the key when it is freed.
pub(super) struct Cipher {
    suite: Suite,
    key: LessSafeKey,
    counter: u64,
    rekey_every: u64,
}

/// A message that does not open: it was changed, or is of another session, direction or place.
#[derive(Debug)]
pub(super) struct OpenError;

impl Cipher {
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self { suite, key: bind(suite, key), counter: 0, rekey_every: REKEY_EVERY }
    }

    /// Rekeys more often, to show where and how.
    #[cfg(test)]
    pub(super) fn rekey_every(mut self, messages: u64) -> Self {
        self.rekey_every = messages;
        self
    }

    /// Goes to just before the first rekeying, but for this many messages.
    #[cfg(test)]
    pub(super) fn before_rekeying(mut self, messages: u64) -> Self {
        self.counter = REKEY_EVERY - messages;
        self
    }

    /// Returns the nonce of the next message.
    fn next_nonce(&mut self) -> Nonce {
        self.rekey_if_due();
        // The last nonce is reserved for rekeying (section 5.1). It is out of reach.
        debug_assert_ne!(self.counter, u64::MAX);
        let nonce = self.suite.nonce(self.counter);
        self.counter += 1;
        nonce
    }

    /// Seals `message` in place and returns its tag.
    pub(super) fn seal(&mut self, ad: &[u8], message: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = self.next_nonce();
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(ad), message);
        let tag = tag.unwrap_or_else(|_| unreachable!("a record is shorter than the limit of the cipher"));
        tag.as_ref().try_into().unwrap_or_else(|_| unreachable!("a tag of 16 bytes"))
    }

    /// Opens a message with its tag at the end in place, and returns the length of the plaintext.
    ///
    /// After an error the cipher must not be used again: no nonce is ever skipped.
    pub(super) fn open(&mut self, ad: &[u8], sealed: &mut [u8]) -> Result<usize, OpenError> {
        let nonce = self.next_nonce();
        let opened = self.key.open_in_place(nonce, Aad::from(ad), sealed).map_err(|_| OpenError)?;
        Ok(opened.len())
    }

    /// Rekeys (section 4.2, `REKEY`) before each message whose number is a multiple of the interval. The counter goes on.
    fn rekey_if_due(&mut self) {
        if self.counter != 0 && self.counter % self.rekey_every == 0 {
            wiping_stack(|| {
                let mut key = Zeroizing::new([0; 32]);
                let nonce = self.suite.nonce(u64::MAX);
                let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut *key);
                let _tag = tag.unwrap_or_else(|_| unreachable!("32 bytes can be sealed"));
                self.key = bind(self.suite, &key);
            });
        }
    }
}

fn bind(suite: Suite, key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(suite.aead(), key);
    LessSafeKey::new(key.unwrap_or_else(|_| unreachable!("both ciphers have keys of 32 bytes")))
}
