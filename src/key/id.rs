use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::KeyError;

/// The public name of a key: 1 to 255 bytes, mostly but not necessarily text.
///
/// An id is no secret: mechanisms send it in clear, logs may show it. `Display` shows text as text, with control
/// characters escaped, so that no peer can break a line of a log; bytes that are not UTF-8 are escaped one by one.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<[u8]>);

impl KeyId {
    /// The longest id, in bytes.
    pub const MAX_LEN: usize = 255;

    /// An id of these bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::IdLength`] unless there are 1 to 255 of them.
    pub fn new(id: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let id = id.as_ref();
        match id.len() {
            1..=Self::MAX_LEN => Ok(Self(id.into())),
            len => Err(KeyError::IdLength(len)),
        }
    }

    /// The id's bytes, as they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

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

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(id: String) -> Result<Self, KeyError> {
        Self::new(id)
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(id: &str) -> Result<Self, KeyError> {
        Self::new(id)
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
    fn one_to_255_bytes() {
        assert_eq!(KeyId::new("").unwrap_err(), KeyError::IdLength(0));
        assert_eq!(KeyId::new([b'i'; 256]).unwrap_err(), KeyError::IdLength(256));
        assert_eq!(KeyId::new([b'i'; 255]).unwrap().as_bytes().len(), 255);
    }

    #[test]
    fn shown_on_one_line_whatever_it_is() {
        assert_eq!(KeyId::new("设备-1").unwrap().to_string(), "设备-1");
        assert_eq!(KeyId::new("a\nb\x1b[2J").unwrap().to_string(), "a\\nb\\u{1b}[2J");
        assert_eq!(KeyId::new([0xff, b'\n']).unwrap().to_string(), "\\xff\\n");
    }
}
