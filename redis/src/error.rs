use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use redis::RedisError;
use tower_challenge::key::KeyFileError;
use tower_challenge::{KeyError, KeyId};

/// Why a store cannot be used, or was not changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Redis cannot be reached, or refused a command.
    Redis(RedisError),
    /// Redis did not answer in time.
    TimedOut,
    /// There is no marker: the store was never initialized, or was wiped.
    NoMarker,
    /// The marker was not made with this secret.
    WrongMarker,
    /// The store has another marker than before: it was initialized again.
    AnotherStore,
    /// The store is initialized already.
    Initialized,
    /// The store has no marker, but has values: it is damaged. They could not be opened any more.
    NotEmpty,
    /// The id has been revoked, or has no key.
    UnknownId(KeyId),
    /// The id has been revoked. Only a new key can be added to it.
    Revoked(KeyId),
    /// The id has keys already: rotate it.
    Exists(KeyId),
    /// The id has the maximum number of keys: remove one first, or wait until one ends.
    TooManyKeys(KeyId),
    /// Keys that are derived cannot be rotated, imported or exported: revoke the id, and use another one.
    DerivedKeys,
    /// The value of this id cannot be opened: it was changed, or sealed with another secret.
    Unreadable(KeyId),
    /// Another change of the same id came first.
    Conflict,
    /// There are more ids than a server takes.
    TooManyIds(usize),
    /// A key cannot be used.
    Key(KeyError),
    /// The secret does not have 32 bytes.
    SecretLength(usize),
    /// The file of the secret cannot be used.
    SecretFile(KeyFileError),
    /// The file of the secret does not consist of 64 hexadecimal digits and a line end.
    SecretContent(PathBuf),
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, error: io::Error) -> Self {
        Self::File(path.to_owned(), error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The text may be Redis' own, which is not trusted.
            Self::Redis(error) => write!(f, "Redis: {}", printable(&error.to_string(), 200)),
            Self::TimedOut => f.write_str("Redis: no answer in time"),
            Self::NoMarker => {
                f.write_str("the store is not initialized, or was wiped; run `challenge-keys init`")
            }
            Self::WrongMarker => f.write_str("the store was initialized with another secret"),
            Self::AnotherStore => {
                f.write_str("the store was initialized again since this server has read it; a state file must be removed first")
            }
            Self::NotEmpty => {
                f.write_str("the marker is missing, but there are values, which would be lost: restore a backup, or delete them")
            }
            Self::Initialized => f.write_str("the store is initialized already"),
            Self::Revoked(id) => write!(f, "\"{id}\" was revoked; `add` makes a new key for it"),
            Self::UnknownId(id) => write!(f, "\"{id}\" has no key"),
            Self::Exists(id) => write!(f, "\"{id}\" has a key already; use `rotate` for another one"),
            Self::TooManyKeys(id) => write!(f, "\"{id}\" has four keys already"),
            Self::DerivedKeys => f.write_str("derived keys cannot be rotated, imported or exported"),
            Self::Unreadable(id) => write!(f, "the value of \"{id}\" cannot be opened with this secret"),
            Self::Conflict => f.write_str("another change of the same id came first; try again"),
            Self::TooManyIds(max) => write!(f, "the store has more than {max} ids"),
            Self::Key(error) => error.fmt(f),
            Self::SecretLength(len) => write!(f, "the secret has {len} bytes, not 32"),
            Self::SecretFile(error) => error.fmt(f),
            Self::SecretContent(path) => {
                write!(f, "{}: expected 64 hexadecimal digits and a line end", path.display())
            }
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

/// `Display` shows the cause, so this is the source of the cause.
impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Redis(error) => error.source(),
            Self::Key(error) => error.source(),
            Self::SecretFile(error) => error.source(),
            Self::File(_, error) => error.source(),
            _ => None,
        }
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        if error.is_timeout() { Self::TimedOut } else { Self::Redis(error) }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

/// Escapes control characters of a text that is not trusted, and shortens it.
pub(crate) fn printable(text: &str, max: usize) -> String {
    text.chars().take(max).flat_map(char::escape_debug).collect()
}
