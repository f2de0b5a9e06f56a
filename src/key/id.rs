use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::KeyError;

/// The public name of a key: 1 to 255 bytes, usually text.
///
/// An id is not a secret: mechanisms send it in clear, and logs may show it. `Display` prints text with control
/// characters escaped, so that an id cannot inject a line into a log. An id that is not UTF-8 is escaped byte by byte.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<[u8]>);

impl KeyId {
    /// The maximum length of an id, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Hexadecimal digits in a row that an id from a person may not have: they are rather a key.
    const KEY_LIKE_LEN: usize = 32;

    /// Creates an id of any bytes, e.g. one that a database or a peer sent. Use [`from_text`](Self::from_text) for an
    /// id that a person typed.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::IdLength`] unless the id has 1 to 255 bytes.
    pub fn new(id: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let id = id.as_ref();
        match id.len() {
            1..=Self::MAX_LEN => Ok(Self(id.into())),
            len => Err(KeyError::IdLength(len)),
        }
    }

    /// Creates an id from text that a person typed, e.g. an argument on the command line. The same rules apply to the
    /// ids in a [`KeyFile`](super::KeyFile). Text that breaks them is more likely a mistake, or a key in the wrong
    /// place, than an id. [`FromStr`] does the same, so `clap` can parse a `KeyId`.
    ///
    /// Such an id is printed by `Display` as it is, and can be written to a key file.
    ///
    /// ```
    /// use tower_challenge::KeyId;
    ///
    /// assert_eq!(KeyId::from_text("alice@web-1")?, "alice@web-1");
    /// assert!(KeyId::from_text("alice ").is_err());
    /// assert!(KeyId::from_text("5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d").is_err());
    /// # Ok::<(), tower_challenge::KeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns
    ///
    /// - [`KeyError::IdLength`] unless the id has 1 to 255 bytes
    /// - [`KeyError::IdColon`] if it contains a colon
    /// - [`KeyError::IdNotPrintable`] if it contains white space, a control character, an invisible character, a
    ///   quotation mark or a backslash
    /// - [`KeyError::IdComment`] if it begins with `#`
    /// - [`KeyError::IdLikeKey`] if it contains 32 or more hexadecimal digits in a row
    pub fn from_text(id: &str) -> Result<Self, KeyError> {
        let checked = Self::new(id)?;
        if id.contains(':') {
            return Err(KeyError::IdColon);
        }
        if id.contains(is_blank) || !id.escape_debug().eq(id.chars()) {
            return Err(KeyError::IdNotPrintable);
        }
        if id.starts_with('#') {
            return Err(KeyError::IdComment);
        }
        let mut digits = id.as_bytes().split(|byte| !byte.is_ascii_hexdigit());
        if digits.any(|digits| digits.len() >= Self::KEY_LIKE_LEN) {
            return Err(KeyError::IdLikeKey);
        }
        Ok(checked)
    }

    /// Returns the bytes of the id, as they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Returns whether the character is white space, or has no width or no ink: it is overlooked in an id or a key.
pub(super) fn is_blank(c: char) -> bool {
    // The characters of Unicode's `Default_Ignorable_Code_Point`, and the empty Braille pattern.
    c.is_whitespace()
        || !c.is_ascii()
            && matches!(
                c,
                '\u{ad}'
                    | '\u{34f}'
                    | '\u{61c}'
                    | '\u{115f}'..='\u{1160}'
                    | '\u{17b4}'..='\u{17b5}'
                    | '\u{180b}'..='\u{180f}'
                    | '\u{200b}'..='\u{200f}'
                    | '\u{202a}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}'
                    | '\u{2800}'
                    | '\u{3164}'
                    | '\u{fe00}'..='\u{fe0f}'
                    | '\u{feff}'
                    | '\u{ffa0}'
                    | '\u{fff0}'..='\u{fff8}'
                    | '\u{1bca0}'..='\u{1bca3}'
                    | '\u{1d173}'..='\u{1d17a}'
                    | '\u{e0000}'..='\u{e0fff}'
            )
}

/// Creates an id of any text, like [`KeyId::new`].
impl TryFrom<&str> for KeyId {
    type Error = KeyError;

    fn try_from(id: &str) -> Result<Self, KeyError> {
        Self::new(id)
    }
}

impl TryFrom<&[u8]> for KeyId {
    type Error = KeyError;

    fn try_from(id: &[u8]) -> Result<Self, KeyError> {
        Self::new(id)
    }
}

/// Creates an id of any text, like [`KeyId::new`].
impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(id: String) -> Result<Self, KeyError> {
        Self::new(id)
    }
}

/// Parses text that a person typed, like [`KeyId::from_text`].
impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(id: &str) -> Result<Self, KeyError> {
        Self::from_text(id)
    }
}

impl Borrow<[u8]> for KeyId {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq<str> for KeyId {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for KeyId {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.escape_debug().fmt(f),
            Err(_) => self.0.escape_ascii().fmt(f),
        }
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId(\"{self}\")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_1_to_255_bytes() {
        assert_eq!(KeyId::new("").unwrap_err(), KeyError::IdLength(0));
        assert_eq!(KeyId::new([b'i'; 256]).unwrap_err(), KeyError::IdLength(256));
        assert_eq!(KeyId::new([b'i'; 255]).unwrap().as_bytes().len(), 255);
    }

    #[test]
    fn from_text_accepts_printable_text() {
        for id in [
            "alice",
            "a",
            "web-1.example.org",
            "alice@example.org",
            "CN=web,O=Example",
            "a#1",
            "设备-1",
            "müller",
            "mu\u{308}ller",
            "नमस्ते",
            "550e8400-e29b-41d4-a716-446655440000",
            "0123456789abcdef0123456789abcde",
            "🦀",
        ] {
            assert_eq!(KeyId::from_text(id).unwrap(), id);
            assert_eq!(id.parse::<KeyId>().unwrap().to_string(), id);
        }
        assert!(KeyId::from_text(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn from_text_refuses_likely_mistakes() {
        let not_printable = [
            " alice",
            "alice ",
            "al ice",
            "alice\t",
            "alice\n",
            "alice\r",
            "\u{feff}alice",
            "alice\u{a0}",
            "al\u{ad}ice",
            "alice\u{200b}",
            "al\u{200d}ice",
            "al\u{202e}ice",
            "alice\u{2028}",
            "alice\u{3000}",
            "alice\u{fe0f}",
            "alice\u{3164}",
            "alice\u{2800}",
            "alice\u{e0061}",
            "alice\u{e000}",
            "alice\u{85}",
            "al\0ice",
            "al\x1bice",
            "al\x7fice",
            "\"alice\"",
            "'alice'",
            "alice\\",
            "\u{308}alice",
        ];
        for id in not_printable {
            assert_eq!(KeyId::from_text(id).unwrap_err(), KeyError::IdNotPrintable, "{id:?}");
            // It may be an id of another source.
            assert!(KeyId::new(id).is_ok());
        }
        let key = "0123456789abcdef0123456789ABCDEF";
        for (id, error) in [
            (String::new(), KeyError::IdLength(0)),
            ("x".repeat(256), KeyError::IdLength(256)),
            ("host:8888".to_owned(), KeyError::IdColon),
            (format!("alice:{key}"), KeyError::IdColon),
            ("#alice".to_owned(), KeyError::IdComment),
            (key.to_owned(), KeyError::IdLikeKey),
            (format!("{key}{key}"), KeyError::IdLikeKey),
            (format!("alice-{key}-x"), KeyError::IdLikeKey),
        ] {
            assert_eq!(KeyId::from_text(&id).unwrap_err(), error, "{id:?}");
            assert_eq!(id.parse::<KeyId>().unwrap_err(), error);
            assert!(!error.to_string().contains("0123456789"), "{error}");
        }
    }

    #[test]
    fn display_escapes_control_characters_and_invalid_utf8() {
        assert_eq!(KeyId::new("设备-1").unwrap().to_string(), "设备-1");
        assert_eq!(KeyId::new("a\nb\x1b[2J").unwrap().to_string(), "a\\nb\\u{1b}[2J");
        assert_eq!(KeyId::new([0xff, b'\n']).unwrap().to_string(), "\\xff\\n");
    }
}
