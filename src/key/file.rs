use std::error::Error;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Key, KeyEntry, KeyError, KeyId};

/// A file of keys, one `id:hex` a line.
///
/// ```text
/// # what follows a `#` at the start of a line is a comment
/// alice:5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d
/// host:8888:00112233445566778899aabbccddeeff
/// ```
///
/// That is the hexadecimal subset of stunnel's `PSKsecrets`. The last colon of a line splits it, so an id may have
/// colons; the same id on several lines means several keys, which is how one is rotated. Blank lines, spaces at the
/// end of a line and the carriage returns of Windows are ignored. `openssl rand -hex 32` makes a key.
///
/// On Unix, a file that others than its owner can read or write is an error, checked on the file that was opened. On
/// other systems nothing is checked.
///
/// ```no_run
/// use tower_challenge::{KeyFile, KeyRing, one_way};
///
/// let ring: KeyRing<one_way::PreparedKey> = KeyRing::new(KeyFile::new("/etc/orders/keys").read()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    open_to_others: bool,
}

impl KeyFile {
    /// The file at `path`, which is not touched before [`read`](Self::read).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), open_to_others: false }
    }

    /// Accepts a file that others can read or write, as container runtimes mount secrets; whoever is in the container
    /// can then read the keys.
    #[must_use]
    pub fn allow_open_to_others(mut self) -> Self {
        self.open_to_others = true;
        self
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all entries, in the order of the file. At least one.
    ///
    /// This blocks on the file system: call it before the server runs, or in `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// A [`KeyFileError`] that names the file, the line where there is one, and never what the line says.
    pub fn read(&self) -> Result<Vec<KeyEntry>, KeyFileError> {
        let (file, metadata) = self.open()?;
        self.read_from(file, &metadata)
    }

    /// The file, and what it is at this moment.
    pub(super) fn open(&self) -> Result<(File, Metadata), KeyFileError> {
        let opened = File::open(&self.path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        opened.map_err(|error| self.error((None, KeyFileErrorKind::Io(error))))
    }

    /// Reads all entries from the file that was opened.
    pub(super) fn read_from(&self, file: File, metadata: &Metadata) -> Result<Vec<KeyEntry>, KeyFileError> {
        self.read_lines(file, metadata).map_err(|error| self.error(error))
    }

    fn error(&self, (line, kind): (Option<usize>, KeyFileErrorKind)) -> KeyFileError {
        KeyFileError { path: self.path.clone(), line, kind }
    }

    fn read_lines(
        &self,
        file: File,
        metadata: &Metadata,
    ) -> Result<Vec<KeyEntry>, (Option<usize>, KeyFileErrorKind)> {
        let content = self.read_bytes(file, metadata).map_err(|kind| (None, kind))?;
        let mut entries = Vec::new();
        for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii_end();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            entries.push(entry(line).map_err(|kind| (Some(index + 1), kind))?);
        }
        if entries.is_empty() { Err((None, KeyFileErrorKind::Key(KeyError::NoKeys))) } else { Ok(entries) }
    }

    fn read_bytes(
        &self,
        mut file: File,
        metadata: &Metadata,
    ) -> Result<Zeroizing<Vec<u8>>, KeyFileErrorKind> {
        if !self.open_to_others {
            check_permissions(metadata)?;
        }
        // Room for all of it and the read that finds the end, so that the buffer does not grow and leave copies behind.
        let room = usize::try_from(metadata.len()).unwrap_or_default().saturating_add(1);
        let mut content = Zeroizing::new(Vec::with_capacity(room));
        file.read_to_end(&mut content).map_err(KeyFileErrorKind::Io)?;
        Ok(content)
    }
}

fn entry(line: &[u8]) -> Result<KeyEntry, KeyFileErrorKind> {
    let colon = line.iter().rposition(|&byte| byte == b':').ok_or(KeyFileErrorKind::NoColon)?;
    let (id, digits) = (&line[..colon], &line[colon + 1..]);
    let id = KeyId::new(id).map_err(KeyFileErrorKind::Key)?;
    let key = Key::from_hex(digits).map_err(KeyFileErrorKind::Key)?;
    KeyEntry::new(id, key).map_err(KeyFileErrorKind::Key)
}

#[cfg(unix)]
fn check_permissions(metadata: &Metadata) -> Result<(), KeyFileErrorKind> {
    use std::os::unix::fs::MetadataExt as _;

    const GROUP_AND_OTHERS: u32 = 0o077;
    let mode = metadata.mode() & 0o777;
    if mode & GROUP_AND_OTHERS == 0 { Ok(()) } else { Err(KeyFileErrorKind::OpenToOthers { mode }) }
}

#[cfg(not(unix))]
fn check_permissions(_: &Metadata) -> Result<(), KeyFileErrorKind> {
    Ok(())
}

/// A key file that can't be used. Says which file and which line, never what is in it.
#[derive(Debug)]
pub struct KeyFileError {
    path: PathBuf,
    line: Option<usize>,
    kind: KeyFileErrorKind,
}

impl KeyFileError {
    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &KeyFileErrorKind {
        &self.kind
    }

    /// The number of the line that is wrong, the first being 1, unless it is the file as a whole.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What is wrong with a key file.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyFileErrorKind {
    /// The file can't be opened or read.
    Io(io::Error),
    /// Others than the owner can read or write the file.
    OpenToOthers {
        /// The file's permission bits.
        mode: u32,
    },
    /// A line without the colon between id and key.
    NoColon,
    /// A bad id, a bad key, or no key in the whole file.
    Key(KeyError),
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key file {}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        match &self.kind {
            KeyFileErrorKind::Io(error) => write!(f, ": {error}"),
            KeyFileErrorKind::OpenToOthers { mode } => {
                write!(f, ": its mode {mode:o} lets others at the keys; make it private (chmod 600)")?;
                f.write_str(", or, for a secret that a container runtime mounted, allow it by name")
            }
            KeyFileErrorKind::NoColon => f.write_str(": no colon between id and key"),
            KeyFileErrorKind::Key(error) => write!(f, ": {error}"),
        }
    }
}

impl Error for KeyFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            KeyFileErrorKind::Io(error) => Some(error),
            KeyFileErrorKind::Key(error) => Some(error),
            KeyFileErrorKind::OpenToOthers { .. } | KeyFileErrorKind::NoColon => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: impl AsRef<[u8]>) -> Result<Vec<(String, Vec<u8>)>, KeyFileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let entries = KeyFile::new(file.path()).read()?;
        Ok(entries.iter().map(|e| (e.id().to_string(), e.key().expose_secret().to_vec())).collect())
    }

    #[test]
    fn the_format() {
        let content = "# comment\r\n\r\nalice:00Ff\r\nalice:01 \t\n\nhost:8888:02\n设备: 1:03";
        let expected = [
            ("alice", vec![0x00, 0xff]),
            ("alice", vec![0x01]),
            ("host:8888", vec![0x02]),
            ("设备: 1", vec![0x03]),
        ];
        assert_eq!(read(content).unwrap(), expected.map(|(id, key)| (id.to_owned(), key)));
    }

    #[test]
    fn a_bad_line_is_named_by_number_and_not_repeated() {
        for (line, problem) in [
            ("c0ffee", "no colon between id and key"),
            ("bob:c0ffe", "the key is not an even number of hexadecimal digits"),
            ("bob:c0ffee zz", "the key is not an even number of hexadecimal digits"),
            ("bob:", "the key is empty"),
            (":c0ffee", "a key id has 1 to 255 bytes, this one 0"),
        ] {
            let error = read(format!("alice:01\n\n{line}\n")).unwrap_err();
            assert_eq!(error.line(), Some(3));
            let message = error.to_string();
            assert!(message.ends_with(&format!(", line 3: {problem}")), "{message}");
            assert!(!format!("{message}{error:?}").contains("c0ffe"), "{message}");
        }
    }

    #[test]
    fn an_empty_file_is_an_error() {
        for content in ["", "\n\n", "# only a comment\n"] {
            let error = read(content).unwrap_err();
            assert!(matches!(error.kind(), KeyFileErrorKind::Key(KeyError::NoKeys)), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_with_its_source() {
        let error = KeyFile::new("/does/not/exist").read().unwrap_err();
        assert!(error.to_string().starts_with("key file /does/not/exist: "), "{error}");
        assert!(error.source().unwrap().is::<io::Error>());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_open_to_others_is_an_error_unless_allowed() {
        use std::os::unix::fs::PermissionsExt as _;

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "alice:01\n").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyFile::new(file.path()).read().unwrap_err();
            assert!(matches!(error.kind(), KeyFileErrorKind::OpenToOthers { mode: m } if *m == mode));
            assert!(error.to_string().contains("chmod 600"), "{error}");
            KeyFile::new(file.path()).allow_open_to_others().read().unwrap();
        }
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o400)).unwrap();
        KeyFile::new(file.path()).read().unwrap();
    }
}
