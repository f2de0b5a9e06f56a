mod access;
mod content;
mod error;
mod open;
mod parse;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use zeroize::Zeroizing;

use self::access::Access;
pub use self::error::{KeyFileError, KeyFileErrorKind};
pub(super) use self::open::{FileKind, Opened};
use super::KeyEntry;

/// A file of keys, one `id:hex` per line.
///
/// ```no_run
/// use tower_challenge::{KeyFile, one_way};
///
/// let ring = one_way::KeyRing::new(KeyFile::new("/etc/orders/keys").read()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Format
///
/// ```text
/// # a line that starts with `#` is a comment
/// alice:5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d
/// web-1:00112233445566778899aabbccddeeff
/// ```
///
/// This is the hexadecimal subset of stunnel's `PSKsecrets`.
///
/// - The id is as [`KeyId::from_text`](super::KeyId::from_text) requires it: printable text without colons and white
///   space.
/// - The key has 8 to 1,024 bytes, as hexadecimal digits of either case.
/// - Several lines with the same id are several keys of this id, which is how a key is rotated. A repeated line counts
///   once.
/// - Comments, and lines that contain at most spaces and tabs, are ignored.
/// - Lines end with LF or CRLF. A UTF-8 byte order mark at the start of the file is ignored.
///
/// Any other line is an error. In particular, a space is an error anywhere in an entry, also at its end. A lenient
/// parser could read a line in another way than its author meant, and accept a wrong key or send a key as an id.
///
/// The following command creates a file with a random key, readable by its owner only:
///
/// ```sh
/// (umask 077; echo "alice:$(openssl rand -hex 32)" > keys)
/// ```
///
/// # Permissions
///
/// On Unix, reading fails unless the file belongs to the effective user of the process or to root, and only its owner
/// can access it. [`allow_group_read`](Self::allow_group_read) also accepts a file that its group can read. The opened
/// file is checked, not the path: other users cannot substitute a file of theirs, even if they can write to the
/// directory. On other systems nothing is checked.
///
/// # Size and type
///
/// A file may have at most [`MAX_LEN`](Self::MAX_LEN) bytes. It must be a regular file, or, for [`read`](Self::read), a
/// FIFO. Directories, devices and sockets are errors, and are not opened.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    access: Access,
    /// Whether the keys were read from a FIFO. All clones share it.
    fifo_was_read: Arc<AtomicBool>,
}

impl KeyFile {
    /// The maximum size of a file, in bytes: 128 MiB. A million entries with keys of 32 bytes fit.
    pub const MAX_LEN: u64 = 128 << 20;

    /// Creates a `KeyFile` for the file at `path`. The file is not opened before [`read`](Self::read) or
    /// [`watch`](Self::watch).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), access: Access::Owner, fifo_was_read: Arc::default() }
    }

    /// Accepts a file that its group can read. Only its owner may write to it, and others may not access it.
    ///
    /// systemd's `LoadCredential=` and Kubernetes' `fsGroup` provide secrets in this way, with mode 0440. If a file
    /// has an ACL, the group's bits of its mode show the permissions that the ACL grants to other users and groups.
    ///
    /// A systemd unit finds its credentials in the directory that the environment variable `CREDENTIALS_DIRECTORY`
    /// names. With `LoadCredential=keys:/etc/orders/keys`:
    ///
    /// ```no_run
    /// use std::path::PathBuf;
    /// use tower_challenge::KeyFile;
    ///
    /// let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
    ///     .ok_or("not started by systemd")?;
    /// let file = KeyFile::new(PathBuf::from(directory).join("keys"))
    ///     .allow_group_read();
    /// let entries = file.read()?;
    /// # drop(entries);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn allow_group_read(mut self) -> Self {
        self.access = self.access.max(Access::OwnerAndGroupRead);
        self
    }

    /// Accepts a file with any owner and any permissions. A user who can write to it can add keys, and a user who can
    /// read it can authenticate. [`allow_group_read`](Self::allow_group_read) is enough for most secrets that a container
    /// runtime mounts.
    #[must_use]
    pub fn dangerous_allow_insecure_permissions(mut self) -> Self {
        self.access = Access::Any;
        self
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all entries, in the order of the file. There is at least one.
    ///
    /// This blocks on the file system. Call it before the server starts, or on a thread of its own. `spawn_blocking` is
    /// less suitable: a runtime waits for such calls when it shuts down, and a network file system that does not
    /// respond blocks a call forever.
    ///
    /// A FIFO, e.g. from a shell's `<(command)` or a secret manager, is read until its writer closes it, without a
    /// deadline. A `KeyFile` and its clones read a FIFO only once, and [`watch`](Self::watch) does not read it at all.
    ///
    /// # Errors
    ///
    /// Returns a [`KeyFileError`] if the file cannot be read, has insecure permissions or another owner, or contains an
    /// invalid line or no key.
    pub fn read(&self) -> Result<Vec<KeyEntry>, KeyFileError> {
        let content = self.read_content()?;
        self.parse(&*content)
    }

    /// Reads the content of the file with the same checks as [`read`](Self::read), and does not parse it: for a secret of
    /// another form. It is overwritten on drop.
    ///
    /// # Errors
    ///
    /// Returns a [`KeyFileError`] if the file cannot be read, or has insecure permissions or another owner.
    pub fn read_content(&self) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        self.content(self.open_or_wait()?)
    }

    /// Parses `content` as if it were the content of the file, e.g. if it comes from a secret manager. The file is not
    /// opened. Errors name its path.
    ///
    /// # Errors
    ///
    /// Returns a [`KeyFileError`] if there is an invalid line or no key.
    pub fn parse(&self, content: impl AsRef<[u8]>) -> Result<Vec<KeyEntry>, KeyFileError> {
        parse::parse(content.as_ref()).map_err(|(line, kind)| KeyFileError {
            path: self.path.clone(),
            line,
            kind,
        })
    }

    /// Checks the permissions of the opened file and reads its content.
    pub(super) fn content(&self, opened: Opened) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        let Opened { mut file, metadata } = opened;
        access::check(&metadata, self.access)
            .and_then(|()| content::read(&mut file, metadata.len(), Self::MAX_LEN))
            .map_err(|kind| self.error(kind))
    }

    pub(super) fn error(&self, kind: KeyFileErrorKind) -> KeyFileError {
        KeyFileError { path: self.path.clone(), line: None, kind }
    }
}
