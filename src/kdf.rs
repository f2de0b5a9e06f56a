//! HKDF-SHA-256 (RFC 5869). The functions overwrite what they compute with.

use std::sync::Arc;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroize as _;

use crate::mechanism::wiping_stack;

/// Extracts a pseudorandom key. It is shared so that it is never moved: a move would leave a copy.
pub(crate) fn extract(salt: Option<&[u8]>, key: &[u8]) -> Arc<Hkdf<Sha256>> {
    wiping_stack(|| {
        let (mut prk, hkdf) = Hkdf::extract(salt, key);
        prk.zeroize();
        Arc::new(hkdf)
    })
}

/// Expands into `out`, which must have at most 8,160 bytes. The parts of `info` are concatenated.
pub(crate) fn expand(prk: &Hkdf<Sha256>, info: &[&[u8]], out: &mut [u8]) {
    wiping_stack(|| {
        if prk.expand_multi_info(info, out).is_err() {
            unreachable!("HKDF-SHA-256 outputs up to 8,160 bytes");
        }
    });
}
