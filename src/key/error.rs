use std::error::Error;
use std::fmt;

use super::KeyId;
use crate::error::debug_as_display;

/// An error in the configuration of keys: a key, a key id or a set of keys that cannot be used.
///
/// A peer never causes it. No message contains a part of a key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The key has no bytes. It would authenticate everyone who knows the mechanism.
    Empty,
    /// The key consists of zero bytes. HMAC pads a key with zeros, so it is equivalent to the empty key; it is also
    /// what a buffer contains that was never filled.
    AllZero,
    /// The operating system returned no random bytes to generate a key from.
    Random,
    /// The key is not an even number of hexadecimal digits. The message does not repeat them, since they may be most of
    /// a secret.
    NotHex,
    /// The key, from text or a file, has fewer bytes than [`Key::MIN_INPUT_LEN`](super::Key::MIN_INPUT_LEN).
    TooShort {
        /// The minimum, in bytes.
        min: usize,
    },
    /// The key, from text or a file, has more bytes than [`Key::MAX_INPUT_LEN`](super::Key::MAX_INPUT_LEN).
    TooLong {
        /// The maximum, in bytes.
        max: usize,
    },
    /// The key, from text, begins or ends with white space, the end of a line or an invisible character.
    SurroundingWhiteSpace,
    /// The key id does not have 1 to 255 bytes, but this many.
    IdLength(usize),
    /// The key id, from text, contains white space, a control character, an invisible character, a quotation mark or a
    /// backslash. The message does not repeat it, since it may be a key in the wrong place.
    IdNotPrintable,
    /// The key id, from text, contains a colon, which separates the id from the key in a key file.
    IdColon,
    /// The key id, from text, begins with `#`, as a comment in a key file does.
    IdComment,
    /// The key id, from text, contains 32 or more hexadecimal digits in a row. It is probably a key, and an id is
    /// sent in clear.
    IdLikeKey,
    /// There are no keys. An empty key ring rejects everyone, which almost always means a misconfigured key file.
    NoKeys,
    /// There are more keys than the mechanism tries for each peer, see
    /// [`KeyRing::with_max_keys`](super::KeyRing::with_max_keys).
    TooManyKeys {
        /// The number of keys.
        count: usize,
        /// The maximum for this ring.
        max: usize,
    },
    /// There are more keys with the same id than the mechanism tries, see
    /// [`PrepareKey::MAX_KEYS_PER_ID`](super::PrepareKey::MAX_KEYS_PER_ID).
    TooManyKeysOfId {
        /// The id.
        id: KeyId,
        /// The maximum for an id.
        max: usize,
    },
    /// A key source was asked for the keys of one id and returned a key with this other id.
    AnotherId(KeyId),
    /// Two ids have the same key, and the mechanism identifies peers by their key. HMAC pads short keys with zeros and
    /// hashes long ones, so that different bytes can be the same key.
    SharedKey {
        /// The first id.
        first: KeyId,
        /// The other id.
        second: KeyId,
    },
    /// The audience does not have 1 to 255 bytes, but this many; see `mutual::Audience`.
    AudienceLength(usize),
    /// The mechanism cannot use this key, for the given reason.
    Unsuitable(&'static str),
    /// The mechanism cannot use a key of a key ring or another key source.
    UnsuitableKeyOfId {
        /// The id of the key.
        id: KeyId,
        /// The reason that the mechanism gave.
        reason: &'static str,
    },
}

impl KeyError {
    /// Adds the id of the key to the error of a mechanism.
    pub(crate) fn with_id(self, id: &KeyId) -> Self {
        match self {
            Self::Unsuitable(reason) => Self::UnsuitableKeyOfId { id: id.clone(), reason },
            other => other,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty; generate one with `openssl rand -hex 32`"),
            Self::AllZero => f.write_str("the key is all zeros; generate one with `openssl rand -hex 32`"),
            Self::Random => f.write_str("the operating system returned no random bytes for a new key"),
            Self::NotHex => {
                f.write_str("the key must be an even number of hexadecimal digits, without spaces")
            }
            Self::TooShort { min } => {
                write!(f, "the key is shorter than {min} bytes; generate one with `openssl rand -hex 32`")
            }
            Self::TooLong { max } => write!(f, "the key is longer than {max} bytes; 32 are enough"),
            Self::SurroundingWhiteSpace => f.write_str(
                "white space, a line end or an invisible character before or after the key; remove it",
            ),
            Self::IdLength(len) => write!(f, "a key id must have 1 to 255 bytes, this one has {len}"),
            Self::IdNotPrintable => f.write_str(
                "a key id must be printable text, without spaces, invisible characters, quotation marks or backslashes",
            ),
            Self::IdColon => f.write_str("a key id must not contain a colon; give the id without the key"),
            Self::IdComment => f.write_str("a key id must not begin with `#`"),
            Self::IdLikeKey => f.write_str(
                "the key id contains 32 or more hexadecimal digits in a row, like a key, and ids are not secret; \
                 choose another id",
            ),
            Self::NoKeys => f.write_str("there are no keys; add at least one"),
            Self::TooManyKeys { count, max } => {
                write!(
                    f,
                    "{count} keys, but at most {max} are tried; remove some or use `KeyRing::with_max_keys`"
                )
            }
            Self::TooManyKeysOfId { id, max } => {
                write!(f, "more than {max} keys with the id \"{id}\"; remove the oldest ones")
            }
            Self::AnotherId(id) => {
                write!(
                    f,
                    "the key source returned a key with the id \"{id}\", which is not the requested one"
                )
            }
            Self::SharedKey { first, second } => {
                write!(
                    f,
                    "the ids \"{first}\" and \"{second}\" have the same key; this mechanism tells peers apart by \
                     their keys"
                )
            }
            Self::AudienceLength(len) => {
                write!(f, "an audience must have 1 to 255 bytes, this one has {len}")
            }
            Self::Unsuitable(reason) => write!(f, "unsuitable key: {reason}"),
            Self::UnsuitableKeyOfId { id, reason } => {
                write!(f, "unsuitable key with the id \"{id}\": {reason}")
            }
        }
    }
}

debug_as_display!(KeyError);

impl Error for KeyError {}

/// Lets functions that take anything convertible to a [`KeyId`] also take a `KeyId`.
impl From<std::convert::Infallible> for KeyError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_equals_display() {
        let id = KeyId::new("a\nb").unwrap();
        let error = KeyError::Unsuitable("too short").with_id(&id);
        assert_eq!(error.to_string(), "unsuitable key with the id \"a\\nb\": too short");
        assert_eq!(format!("{error:?}"), error.to_string());
        assert_eq!(KeyError::Empty.with_id(&id), KeyError::Empty);
    }
}
