//! HKDF-SHA-256 (RFC 5869), for what is never longer than it gives.

use hkdf::Hkdf;
use sha2::Sha256;

/// Expands into `out`, of at most 8,160 bytes. The parts of `info` are one after the other.
pub(crate) fn expand(prk: &Hkdf<Sha256>, info: &[&[u8]], out: &mut [u8]) {
    if prk.expand_multi_info(info, out).is_err() {
        unreachable!("HKDF-SHA-256 gives up to 8,160 bytes");
    }
}
