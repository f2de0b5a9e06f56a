//! The name of the protocol, the lengths of its fields, and their encoding in a hash.

pub(super) const PROTOCOL: &[u8] = b"tower-challenge mutual v1";

pub(super) const NONCE_LEN: usize = 32;
pub(super) const TAG_LEN: usize = 32;

pub(super) type Nonce = [u8; NONCE_LEN];
pub(super) type Tag = [u8; TAG_LEN];

/// Returns the length of a field in two bytes. These are enough, since the length of each field is checked before.
pub(super) fn len_prefix(field: &[u8]) -> [u8; 2] {
    u16::try_from(field.len()).expect("a field of at most 65,535 bytes").to_be_bytes()
}
