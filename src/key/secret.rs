use std::fmt;

use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::KeyError;
use super::id::is_blank;

/// A secret that a client and a server share.
///
/// Its memory is overwritten on drop, and `Debug` prints nothing of it, not even its length. It does not implement
/// `PartialEq`: mechanisms compare proofs, in constant time, and never keys.
///
/// Never use one key with two mechanisms: a rogue server of a simple mechanism can make a client sign bytes that have
/// a meaning in another one.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// The length of a key that [`generate`](Self::generate) returns, in bytes.
    pub const GENERATED_LEN: usize = 32;

    /// The minimum length of a key from [`from_text`](Self::from_text) or a [`KeyFile`](super::KeyFile), in bytes. A
    /// shorter one is more likely a mistake than a key.
    pub const MIN_INPUT_LEN: usize = 8;

    /// The maximum length of a key from [`from_text`](Self::from_text) or a [`KeyFile`](super::KeyFile), in bytes.
    pub const MAX_INPUT_LEN: usize = 1024;

    /// Creates a key from a copy of `bytes`. [`TryFrom<Vec<u8>>`](#impl-TryFrom<Vec<u8>>-for-Key) takes ownership of
    /// the bytes instead, so that no second copy stays in memory.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Empty`] if there are no bytes, and [`KeyError::AllZero`] if all of them are zero. A
    /// mechanism may require a longer key.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        Self::try_from(bytes.as_ref().to_vec())
    }

    /// Generates a key of 32 random bytes from the operating system. Recommended for every new key.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Random`] if the operating system returns no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(vec![0; Self::GENERATED_LEN]);
        SysRng.try_fill_bytes(&mut bytes).map_err(|_| KeyError::Random)?;
        Ok(Self(bytes))
    }

    /// Decodes a key from hexadecimal digits of either case, the format of a [`KeyFile`](super::KeyFile).
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::NotHex`] unless the input is an even number of digits, [`KeyError::Empty`] if there are
    /// none, and [`KeyError::AllZero`] if all bytes are zero.
    pub fn from_hex(digits: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let digits = digits.as_ref();
        let mut bytes = Zeroizing::new(vec![0; digits.len() / 2]);
        base16ct::mixed::decode(digits, &mut bytes).map_err(|_| KeyError::NotHex)?;
        Self::checked(bytes)
    }

    /// Creates a key from text that a person provides, e.g. in an environment variable. The bytes of the text are the
    /// key, like Python's `authkey`. Text with white space around it is an error, since the white space would be
    /// a part of the key.
    ///
    /// ```
    /// use tower_challenge::{Key, KeyError};
    ///
    /// let key = Key::from_text("This is key!")?;
    /// assert_eq!(key.expose_secret(), b"This is key!");
    /// // The content of a file, with the end of its only line.
    /// assert_eq!(
    ///     Key::from_text("This is key!\n").unwrap_err(),
    ///     KeyError::SurroundingWhiteSpace,
    /// );
    /// # Ok::<(), KeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns
    ///
    /// - [`KeyError::Empty`] if there is no text
    /// - [`KeyError::SurroundingWhiteSpace`] if it begins or ends with white space, the end of a line or an invisible
    ///   character
    /// - [`KeyError::TooShort`] if it has less than 8 bytes, and [`KeyError::TooLong`] if it has more than 1,024
    ///
    /// No error contains a part of the text.
    pub fn from_text(text: impl Into<String>) -> Result<Self, KeyError> {
        // Overwritten also if it is not a key.
        let text = Zeroizing::new(text.into());
        if text.starts_with(is_blank) || text.ends_with(is_blank) {
            return Err(KeyError::SurroundingWhiteSpace);
        }
        Self::new(text.as_bytes())?.of_input_len()
    }

    /// Returns the key if its length is plausible for a key from a person.
    pub(super) fn of_input_len(self) -> Result<Self, KeyError> {
        match self.0.len() {
            Self::MIN_INPUT_LEN..=Self::MAX_INPUT_LEN => Ok(self),
            0..Self::MIN_INPUT_LEN => Err(KeyError::TooShort { min: Self::MIN_INPUT_LEN }),
            _ => Err(KeyError::TooLong { max: Self::MAX_INPUT_LEN }),
        }
    }

    /// Returns a fixed key of the usual length, for computations whose result is discarded.
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

    /// Returns the key as lower-case hexadecimal digits, e.g. to write it to a key file. The string is overwritten on
    /// drop.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(base16ct::lower::encode_string(&self.0))
    }

    /// Returns the secret bytes, for a mechanism that [prepares](super::PrepareKey) the key. Do not keep a copy.
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
    fn rejects_empty_and_zero_keys() {
        assert_eq!(Key::new("").unwrap_err(), KeyError::Empty);
        assert_eq!(Key::from_hex("").unwrap_err(), KeyError::Empty);
        // HMAC pads a key with zeros, so these are equivalent to the empty key.
        assert_eq!(Key::new([0]).unwrap_err(), KeyError::AllZero);
        assert_eq!(Key::from_hex("0000").unwrap_err(), KeyError::AllZero);
    }

    #[test]
    fn hex_round_trip() {
        let key = Key::from_hex("00fFa5").unwrap();
        assert_eq!(key.expose_secret(), [0x00, 0xff, 0xa5]);
        assert_eq!(key.to_hex().as_str(), "00ffa5");
        for bad in ["0", "0g", "0x00", " 00", "é"] {
            assert_eq!(Key::from_hex(bad).unwrap_err(), KeyError::NotHex, "{bad:?}");
        }
    }

    #[test]
    fn from_text_accepts_or_returns_an_error_without_the_text() {
        for text in ["This is key!", "12345678", "pässwör", "with inner\tspace", &"k".repeat(1024)] {
            assert_eq!(Key::from_text(text).unwrap().expose_secret(), text.as_bytes());
        }
        let around = |text| (text, KeyError::SurroundingWhiteSpace);
        let short = KeyError::TooShort { min: 8 };
        for (text, expected) in [
            ("", KeyError::Empty),
            ("hunter2", short.clone()),
            ("7", short),
            around(" hunter2hunter2"),
            around("hunter2hunter2 "),
            around("hunter2hunter2\n"),
            around("hunter2hunter2\r\n"),
            around("\thunter2hunter2"),
            around("\u{feff}hunter2hunter2"),
            around("hunter2hunter2\u{a0}"),
            around("hunter2hunter2\u{200b}"),
            around(" "),
            (&"hunter2".repeat(147), KeyError::TooLong { max: 1024 }),
        ] {
            let error = Key::from_text(text).unwrap_err();
            assert_eq!(error, expected, "{text:?}");
            assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
        }
    }

    #[test]
    fn debug_is_redacted() {
        assert_eq!(format!("{:?}", Key::new("hunter2").unwrap()), "Key(..)");
    }

    #[test]
    fn generated_keys_differ() {
        let (a, b) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert_eq!(a.expose_secret().len(), Key::GENERATED_LEN);
        assert_ne!(a.expose_secret(), b.expose_secret());
    }
}
