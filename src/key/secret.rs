use std::fmt;

use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::KeyError;

/// A secret that two sides share.
///
/// Its memory is overwritten when it is dropped, and `Debug` shows nothing of it, not even its length. There is no
/// `PartialEq`: keys are compared by what they prove.
///
/// A key must never serve two mechanisms: a rogue server of a simple one can have a client sign bytes that mean
/// something in another.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// How many random bytes [`generate`](Self::generate) makes.
    pub const GENERATED_LEN: usize = 32;

    /// A key of these bytes, which are copied. [`TryFrom<Vec<u8>>`](#impl-TryFrom<Vec<u8>>-for-Key) takes them over
    /// instead and leaves no second copy behind.
    ///
    /// # Errors
    ///
    /// [`KeyError::Empty`] where there are none, [`KeyError::AllZero`] where all are zero. How short a key may be
    /// beyond that is up to the mechanism.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        Self::try_from(bytes.as_ref().to_vec())
    }

    /// A key of 32 random bytes from the operating system: the advice for every new key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Random`] if the operating system has no random bytes to give.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(vec![0; Self::GENERATED_LEN]);
        SysRng.try_fill_bytes(&mut bytes).map_err(|_| KeyError::Random)?;
        Ok(Self(bytes))
    }

    /// A key written as hexadecimal digits, of either case, as [`KeyFile`](super::KeyFile) has them.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotHex`] for anything but an even number of digits, [`KeyError::Empty`] for none,
    /// [`KeyError::AllZero`] for zeros only.
    pub fn from_hex(digits: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let digits = digits.as_ref();
        let mut bytes = Zeroizing::new(vec![0; digits.len() / 2]);
        base16ct::mixed::decode(digits, &mut bytes).map_err(|_| KeyError::NotHex)?;
        Self::checked(bytes)
    }

    /// A key of the usual length that nobody is given.
    pub(super) fn throwaway() -> Self {
        Self(Zeroizing::new(vec![1; Self::GENERATED_LEN]))
    }

    pub(super) fn checked(bytes: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        if bytes.iter().fold(0, |any, byte| any | byte) == 0 {
            return Err(KeyError::AllZero);
        }
        Ok(Self(bytes))
    }

    /// The key as lower-case hexadecimal digits, to be written to a key file. The string is overwritten when dropped.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(base16ct::lower::encode_string(&self.0))
    }

    /// The secret bytes, for a mechanism that [prepares](super::PrepareKey) them. Keep no copy.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Key {
    type Error = KeyError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, KeyError> {
        Self::checked(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static_assertions::assert_impl_all!(Key: Send, Sync);

    #[test]
    fn empty_is_refused() {
        assert_eq!(Key::new("").unwrap_err(), KeyError::Empty);
        assert_eq!(Key::from_hex("").unwrap_err(), KeyError::Empty);
        // HMAC fills a key up with zeros: these are the empty key in disguise.
        assert_eq!(Key::new([0]).unwrap_err(), KeyError::AllZero);
        assert_eq!(Key::from_hex("0000").unwrap_err(), KeyError::AllZero);
    }

    #[test]
    fn hex_of_either_case_and_back() {
        let key = Key::from_hex("00fFa5").unwrap();
        assert_eq!(key.expose_secret(), [0x00, 0xff, 0xa5]);
        assert_eq!(key.to_hex().as_str(), "00ffa5");
        for bad in ["0", "0g", "0x00", " 00", "é"] {
            assert_eq!(Key::from_hex(bad).unwrap_err(), KeyError::NotHex, "{bad:?}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Key::new("hunter2").unwrap()), "Key(..)");
    }

    #[test]
    fn generated_keys_differ() {
        let (a, b) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert_eq!(a.expose_secret().len(), Key::GENERATED_LEN);
        assert_ne!(a.expose_secret(), b.expose_secret());
    }
}
