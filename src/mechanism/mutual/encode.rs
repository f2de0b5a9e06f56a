//! The sizes, the name, and how a field is put into what is hashed.

pub(super) const PROTOCOL: &[u8] = b"tower-challenge mutual v1";

pub(super) const NONCE_LEN: usize = 32;
pub(super) const TAG_LEN: usize = 32;

pub(super) type Nonce = [u8; NONCE_LEN];
pub(super) type Tag = [u8; TAG_LEN];

/// The length of a field in two bytes, which are enough: each is bounded where it comes in.
pub(super) fn len_prefix(field: &[u8]) -> [u8; 2] {
    u16::try_from(field.len()).expect("a field of at most 65,535 bytes").to_be_bytes()
}
