use std::error::Error;
use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::encode::len_prefix;
use crate::kdf::expand;

/// What keying material is exported from. Overwritten when dropped, and in one place in memory until then.
#[derive(Clone)]
pub(super) struct Exporter(Arc<Zeroizing<[u8; 32]>>);

impl Exporter {
    pub(super) fn new(prk: &Hkdf<Sha256>, transcript: &[u8; 32]) -> Self {
        let mut secret = Arc::new(Zeroizing::new([0; 32]));
        let place = Arc::get_mut(&mut secret).expect("nobody else has it yet");
        expand(prk, &[b"exporter", transcript], &mut **place);
        Self(secret)
    }

    /// One that nobody else has, not even a peer, since there is none.
    pub(super) fn without_handshake() -> Self {
        let mut secret = Arc::new(Zeroizing::new([0; 32]));
        let place = Arc::get_mut(&mut secret).expect("nobody else has it yet");
        SysRng.try_fill_bytes(&mut **place).expect("the operating system has random bytes");
        Self(secret)
    }

    pub(super) fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
        if label.len().max(context.len()) > ExportError::MAX_FIELD {
            return Err(ExportError);
        }
        let info = [&len_prefix(label)[..], label, &len_prefix(context), context];
        Hkdf::<Sha256>::from_prk(&**self.0)
            .unwrap_or_else(|_| unreachable!("32 bytes are enough"))
            .expand_multi_info(&info, out)
            .map_err(|_| ExportError)
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter(..)")
    }
}

/// More than 8,160 bytes of keying material were asked for, or a label or context of more than 65,535 were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportError;

impl ExportError {
    const MAX_FIELD: usize = u16::MAX as usize;
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too much keying material, or too long a label or context")
    }
}

impl Error for ExportError {}
