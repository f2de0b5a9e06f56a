use std::sync::OnceLock;

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::{Key, KeyError};

/// Tells equal keys without keeping them: a MAC of the key under a secret of this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 16]);

impl Fingerprint {
    pub(super) fn of(key: &Key) -> Result<Self, KeyError> {
        static SECRET: OnceLock<[u8; 32]> = OnceLock::new();

        let secret = if let Some(secret) = SECRET.get() {
            secret
        } else {
            let mut secret = [0; 32];
            SysRng.try_fill_bytes(&mut secret).map_err(|_| KeyError::Random)?;
            // Another thread may have been first.
            SECRET.get_or_init(|| secret)
        };
        let mac = Hmac::<Md5>::new_from_slice(secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
            .chain_update(key.expose_secret());
        Ok(Self(mac.finalize().into_bytes().into()))
    }
}
