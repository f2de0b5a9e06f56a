use hmac::KeyInit;

/// Creates an HMAC that is keyed with `key`.
pub(crate) fn new_hmac<M: KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}
