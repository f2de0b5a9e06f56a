use std::error::Error;
use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::encode::len_prefix;
use crate::error::debug_as_display;
use crate::kdf::expand;
use crate::mechanism::wiping_stack;

/// The secret that keying material is derived from. It is never moved in memory, and overwritten when dropped.
#[derive(Clone)]
pub(super) struct Exporter(Arc<Zeroizing<[u8; 32]>>);

impl Exporter {
    pub(super) fn new(prk: &Hkdf<Sha256>, transcript: &[u8; 32]) -> Self {
        Self::fill_with(|secret| expand(prk, &[b"exporter", transcript], secret))
    }

    /// Creates an exporter with a random secret.
    #[cfg(feature = "test-util")]
    pub(super) fn without_handshake() -> Self {
        use rand::TryRng as _;

        Self::fill_with(|secret| {
            rand::rngs::SysRng.try_fill_bytes(secret).expect("the operating system returns random bytes");
        })
    }

    /// Creates an exporter whose secret `f` writes directly to its final location.
    fn fill_with(f: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut secret = Arc::new(Zeroizing::new([0; 32]));
        f(Arc::get_mut(&mut secret).expect("a new Arc has one owner"));
        Self(secret)
    }

    pub(super) fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
        if label.len().max(context.len()) > ExportError::MAX_FIELD_LEN {
            return Err(ExportError);
        }
        let info = [&len_prefix(label)[..], label, &len_prefix(context), context];
        wiping_stack(|| {
            Hkdf::<Sha256>::from_prk(&**self.0)
                .unwrap_or_else(|_| unreachable!("the secret is as long as the hash"))
                .expand_multi_info(&info, out)
                .map_err(|_| ExportError)
        })
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter(..)")
    }
}

/// The error of `export_keying_material`: more than 8,160 bytes were requested, or the label or the context has more
/// than 65,535 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportError;

debug_as_display!(ExportError);

impl ExportError {
    const MAX_FIELD_LEN: usize = u16::MAX as usize;
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "keying material is limited to 8,160 bytes, and its label and context to 65,535 bytes each",
        )
    }
}

impl Error for ExportError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_context_and_output_have_limits() {
        let exporter = Exporter::fill_with(|secret| secret.fill(7));
        let export = |label, context, out| {
            exporter.export(&vec![b'l'; label], &vec![b'c'; context], &mut vec![0; out])
        };
        for (label, context, out) in [(65_535, 65_535, 8160), (0, 0, 0), (0, 65_535, 1), (65_535, 0, 1)] {
            export(label, context, out).unwrap();
        }
        for (label, context, out) in [(65_536, 0, 1), (0, 65_536, 1), (65_536, 65_536, 1), (1, 1, 8161)] {
            assert_eq!(export(label, context, out), Err(ExportError));
        }
    }
}
