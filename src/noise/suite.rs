use aws_lc_rs::aead::{AES_256_GCM, Algorithm, CHACHA20_POLY1305, Nonce};

/// The cryptographic functions of a session. Both use X25519 and SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Suite {
    /// `Noise_NNpsk0_25519_AESGCM_SHA256`: AES-256-GCM. The default, and several times as fast as the other one on
    /// processors with AES instructions.
    Aes256Gcm,
    /// `Noise_NNpsk0_25519_ChaChaPoly_SHA256`: ChaCha20-Poly1305, for processors without AES instructions.
    ChaCha20Poly1305,
}

impl Suite {
    pub(super) const ALL: [Self; 2] = [Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The suite's number on the wire.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    /// The protocol name of Noise (revision 34, section 8).
    pub(super) const fn protocol_name(self) -> &'static [u8] {
        match self {
            Self::Aes256Gcm => b"Noise_NNpsk0_25519_AESGCM_SHA256",
            Self::ChaCha20Poly1305 => b"Noise_NNpsk0_25519_ChaChaPoly_SHA256",
        }
    }

    pub(super) fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    /// The nonce of a counter (Noise revision 34, section 12.3 and 12.4).
    pub(super) fn nonce(self, counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self {
            Self::Aes256Gcm => counter.to_be_bytes(),
            Self::ChaCha20Poly1305 => counter.to_le_bytes(),
        });
        Nonce::assume_unique_for_key(nonce)
    }
}

/// A set of suites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suites([bool; Suite::ALL.len()]);

impl Suites {
    pub(super) fn contains(self, suite: Suite) -> bool {
        self.0[suite as usize]
    }
}

impl FromIterator<Suite> for Suites {
    fn from_iter<I: IntoIterator<Item = Suite>>(suites: I) -> Self {
        let mut set = [false; Suite::ALL.len()];
        suites.into_iter().for_each(|suite| set[suite as usize] = true);
        Self(set)
    }
}

/// All suites.
impl Default for Suites {
    fn default() -> Self {
        Suite::ALL.into_iter().collect()
    }
}
