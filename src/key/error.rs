use std::error::Error;
use std::fmt;

use super::KeyId;

/// A key, a key id or a set of keys that can't be used: a fault of the configuration, never of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// A key of no bytes at all would authenticate everybody who knows the mechanism.
    Empty,
    /// A key of zeros only. HMAC fills keys up with zeros, so it is the empty key in disguise; and it is what a buffer
    /// looks like that nobody has filled.
    AllZero,
    /// The operating system has no random bytes to make a key of.
    Random,
    /// Not an even number of hexadecimal digits. The digits are not repeated here: they may be most of a secret.
    NotHex,
    /// A key id has 1 to 255 bytes.
    IdLength(usize),
    /// A ring without a key would refuse everybody; that is rather a file that was not found than a wish.
    NoKeys,
    /// More keys than the mechanism tries for each stranger, see
    /// [`KeyRing::with_max_keys`](super::KeyRing::with_max_keys).
    TooManyKeys {
        /// How many keys there were.
        count: usize,
        /// How many this ring may hold.
        max: usize,
    },
    /// More keys of the same id than the mechanism tries, see
    /// [`PrepareKey::MAX_KEYS_PER_ID`](super::PrepareKey::MAX_KEYS_PER_ID).
    TooManyKeysOfId {
        /// The id.
        id: KeyId,
        /// How many keys an id may have.
        max: usize,
    },
    /// A source was asked for the keys of one id, and gave one of this other.
    AnotherId(KeyId),
    /// The mechanism can't use this key, for the reason given.
    Unsuitable(&'static str),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty"),
            Self::AllZero => f.write_str("the key is all zeros"),
            Self::Random => f.write_str("no random bytes to make a key of"),
            Self::NotHex => f.write_str("the key is not an even number of hexadecimal digits"),
            Self::IdLength(len) => write!(f, "a key id has 1 to 255 bytes, this one {len}"),
            Self::NoKeys => f.write_str("no keys at all"),
            Self::TooManyKeys { count, max } => write!(f, "{count} keys where at most {max} are tried"),
            Self::TooManyKeysOfId { id, max } => write!(f, "more than {max} keys with the id {id}"),
            Self::AnotherId(id) => write!(f, "a key of another id than was asked for: {id}"),
            Self::Unsuitable(why) => write!(f, "unsuitable key: {why}"),
        }
    }
}

impl Error for KeyError {}

/// So that what takes anything that can become a [`KeyId`](super::KeyId) takes a `KeyId` too.
impl From<std::convert::Infallible> for KeyError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
