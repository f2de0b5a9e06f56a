use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::Suite;
use crate::mechanism::{wiping_stack, wiping_stack_by};

/// The length of a tag, in bytes.
pub(super) const TAG_LEN: usize = 16;

/// After this many records a direction is rekeyed.
const REKEY_EVERY: u64 = 1 << 20;

/// How much of the stack is overwritten after aws-lc's ChaCha20-Poly1305, in bytes. Measured: it uses 1.1 KiB, and 2.5 KiB
/// without optimizations. To overwrite 4 KiB takes some 30 ns.
pub(super) const STACK_OF_CHACHA20: usize = 4 * 1024;

/// A cipher state of Noise (revision 34, section 5.1): a key and the counter that its nonces come from.
///
/// aws-lc overwrites the memory of the key when it is freed.
// Small, since each connection has two.
pub(super) struct Cipher {
    key: LessSafeKey,
    counter: u64,
}

/// A message that does not open: it was changed, or is of another session, direction or place.
#[derive(Debug)]
pub(super) struct OpenError;

impl Cipher {
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self { key: bind(suite, key), counter: 0 }
    }

    /// Goes to just before the first rekeying, but for this many messages.
    #[cfg(test)]
    pub(super) fn before_rekeying(mut self, messages: u64) -> Self {
        self.counter = REKEY_EVERY - messages;
        self
    }

    fn suite(&self) -> Suite {
        if self.key.algorithm() == &AES_256_GCM { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }

    /// Returns the nonce of the next message.
    fn next_nonce(&mut self) -> Nonce {
        // Before each message whose number is a multiple of the interval. The counter goes on.
        if self.counter != 0 && self.counter % REKEY_EVERY == 0 {
            self.rekey();
        }
        // The last nonce is reserved for rekeying (section 5.1). It is out of reach.
        debug_assert_ne!(self.counter, u64::MAX);
        let nonce = self.suite().nonce(self.counter);
        self.counter += 1;
        nonce
    }

    /// Seals `message` in place and returns its tag.
    pub(super) fn seal(&mut self, ad: &[u8], message: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = self.next_nonce();
        let tag = self.with_key(|key| key.seal_in_place_separate_tag(nonce, Aad::from(ad), message));
        let tag = tag.unwrap_or_else(|_| unreachable!("a record is shorter than the limit of the cipher"));
        tag.as_ref().try_into().unwrap_or_else(|_| unreachable!("a tag of 16 bytes"))
    }

    /// Opens a message with its tag at the end in place, and returns the length of the plaintext.
    ///
    /// After an error the cipher must not be used again: no nonce is ever skipped.
    pub(super) fn open(&mut self, ad: &[u8], sealed: &mut [u8]) -> Result<usize, OpenError> {
        let nonce = self.next_nonce();
        let opened = self.with_key(|key| Some(key.open_in_place(nonce, Aad::from(ad), sealed).ok()?.len()));
        opened.ok_or(OpenError)
    }

    /// Calls `f` with the key, of which nothing is left on the stack then.
    fn with_key<T>(&self, f: impl FnOnce(&LessSafeKey) -> T) -> T {
        match self.suite() {
            Suite::Aes256Gcm => f(&self.key),
            // aws-lc's code for ChaCha20 works with a copy of the key on the stack, and leaves it there.
            Suite::ChaCha20Poly1305 => wiping_stack_by::<STACK_OF_CHACHA20, _>(|| f(&self.key)),
        }
    }

    /// `REKEY` (section 4.2).
    pub(super) fn rekey(&mut self) {
        wiping_stack(|| {
            let mut key = Zeroizing::new([0; 32]);
            let nonce = self.suite().nonce(u64::MAX);
            let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut *key);
            let _tag = tag.unwrap_or_else(|_| unreachable!("32 bytes can be sealed"));
            self.key = bind(self.suite(), &key);
        });
    }
}

fn bind(suite: Suite, key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(suite.aead(), key);
    LessSafeKey::new(key.unwrap_or_else(|_| unreachable!("both ciphers have keys of 32 bytes")))
}
