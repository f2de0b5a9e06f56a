use std::error::Error;
use std::fmt;

/// A key, a key id or a set of keys that can't be used: a fault of the configuration, never of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// A key of no bytes at all would authenticate everybody who knows the mechanism.
    Empty,
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
    /// The mechanism can't use this key, for the reason given.
    Unsuitable(&'static str),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty"),
            Self::NotHex => f.write_str("the key is not an even number of hexadecimal digits"),
            Self::IdLength(len) => write!(f, "a key id has 1 to 255 bytes, this one {len}"),
            Self::NoKeys => f.write_str("no keys at all"),
            Self::TooManyKeys { count, max } => write!(f, "{count} keys where at most {max} are tried"),
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
