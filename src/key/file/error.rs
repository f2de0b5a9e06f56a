use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::debug_as_display;
use crate::key::KeyError;

/// A key file that cannot be used.
///
/// The message names the file and, if one line is at fault, its number. It never contains the content of a line.
pub struct KeyFileError {
    pub(super) path: PathBuf,
    pub(super) line: Option<usize>,
    pub(super) kind: KeyFileErrorKind,
}

impl KeyFileError {
    /// Returns what is wrong.
    #[must_use]
    pub fn kind(&self) -> &KeyFileErrorKind {
        &self.kind
    }

    /// Returns the number of the invalid line, starting at 1. `None` if the file as a whole is at fault.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What is wrong with a key file.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyFileErrorKind {
    /// The file cannot be opened or read.
    Io(io::Error),
    /// The path refers to something that cannot be a key file.
    NotAFile {
        /// What it is, e.g. `"directory"`.
        found: &'static str,
    },
    /// The path refers to a FIFO that was read before, or that would have to be watched.
    Fifo,
    /// The group or others can access the file.
    InsecurePermissions {
        /// The file's permission bits.
        mode: u32,
        /// The user id of the file's owner.
        owner: u32,
    },
    /// The file belongs neither to the effective user of the process nor to root.
    ForeignOwner {
        /// The file's permission bits.
        mode: u32,
        /// The user id of the file's owner.
        owner: u32,
        /// The effective user id of the process.
        user: u32,
    },
    /// The file is larger than [`KeyFile::MAX_LEN`](super::KeyFile::MAX_LEN).
    TooLarge {
        /// The maximum, in bytes.
        max: u64,
    },
    /// The file begins with the byte order mark of another encoding than UTF-8.
    Encoding {
        /// The name of the encoding, e.g. `"UTF-16"`.
        found: &'static str,
    },
    /// A line contains a NUL byte, as in a file in UTF-16 or UTF-32 without a byte order mark.
    Nul,
    /// A line contains a carriage return that is not part of its end.
    CarriageReturn,
    /// An entry is not UTF-8.
    NotUtf8,
    /// An entry contains white space or an invisible character.
    WhiteSpace,
    /// An entry contains a control character.
    ControlCharacter,
    /// A line has no colon between id and key.
    NoColon,
    /// A line has more than one colon.
    TooManyColons,
    /// An id or a key is invalid, or the file contains no key.
    Key(KeyError),
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "key file {path}")?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        f.write_str(": ")?;
        match &self.kind {
            KeyFileErrorKind::Io(error) => error.fmt(f),
            KeyFileErrorKind::NotAFile { found } => {
                write!(f, "this is a {found}; give the path of a regular file")
            }
            KeyFileErrorKind::Fifo => f.write_str(
                "a FIFO is read only once and cannot be watched; use a regular file to replace keys while the program \
                 runs",
            ),
            KeyFileErrorKind::InsecurePermissions { mode, owner } => {
                write!(f, "permissions {mode:04o} (owner: uid {owner}) are too open; run `chmod 600 {path}`, or ")?;
                let is_readable_by_group = mode & 0o077 == 0o040;
                if is_readable_by_group {
                    f.write_str("allow the group to read with `KeyFile::allow_group_read`")
                } else {
                    f.write_str("skip the check with `KeyFile::dangerous_allow_insecure_permissions`")
                }
            }
            KeyFileErrorKind::ForeignOwner { mode, owner, user } => {
                write!(
                    f,
                    "the owner (uid {owner}, permissions {mode:04o}) is neither this user nor root; run \
                     `chown {user} {path}`, or skip the check with `KeyFile::dangerous_allow_insecure_permissions`"
                )
            }
            KeyFileErrorKind::TooLarge { max } => {
                write!(f, "larger than {max} bytes, the maximum; check the path, or use a `KeyStore`")
            }
            KeyFileErrorKind::Encoding { found } => write!(f, "the encoding is {found}; save the file as UTF-8"),
            KeyFileErrorKind::Nul => f.write_str(
                "a NUL byte; save the file as UTF-8 if its encoding is UTF-16 or UTF-32, or else restore it",
            ),
            KeyFileErrorKind::CarriageReturn => f.write_str(
                "a carriage return within the line; save the file with the line ends LF or CRLF",
            ),
            KeyFileErrorKind::NotUtf8 => f.write_str("not UTF-8; save the file as UTF-8"),
            KeyFileErrorKind::WhiteSpace => f.write_str(
                "a space, a tab or an invisible character; write one entry `id:hex` per line, without any of them",
            ),
            KeyFileErrorKind::ControlCharacter => {
                f.write_str("a control character; write one entry `id:hex` per line, without any")
            }
            KeyFileErrorKind::NoColon => {
                f.write_str("no colon between id and key; the format of a line is `id:hex`")
            }
            KeyFileErrorKind::TooManyColons => f.write_str(
                "more than one colon; the format of a line is `id:hex`, and an id has no colon",
            ),
            KeyFileErrorKind::Key(KeyError::NoKeys) => {
                f.write_str("the file contains no keys; the format of a line is `id:hex`")
            }
            KeyFileErrorKind::Key(error) => error.fmt(f),
        }
    }
}

debug_as_display!(KeyFileError);

// `Display` includes the cause, so `source` begins below it.
impl Error for KeyFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            KeyFileErrorKind::Io(error) => error.source(),
            KeyFileErrorKind::Key(error) => error.source(),
            _ => None,
        }
    }
}
