use std::fs::{self, File, Metadata};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::{KeyFile, KeyFileError, KeyFileErrorKind};

/// An opened key file, and its metadata. They belong together, whatever happens to the path in the meantime.
pub(in crate::key) struct Opened {
    pub(in crate::key) file: File,
    pub(in crate::key) metadata: Metadata,
}

impl KeyFile {
    /// Opens a regular file, or a FIFO that was not read before. Blocks until a FIFO has a writer.
    pub(super) fn open_or_wait(&self) -> Result<Opened, KeyFileError> {
        self.try_open(|path| {
            if self.fifo_was_read.load(Ordering::Relaxed) {
                return Err(KeyFileErrorKind::Fifo);
            }
            let opened = File::open(path).and_then(opened).map_err(KeyFileErrorKind::Io)?;
            // If two threads waited for a writer, only one of them reads.
            if self.fifo_was_read.swap(true, Ordering::Relaxed) {
                return Err(KeyFileErrorKind::Fifo);
            }
            Ok(opened)
        })
        .map_err(|kind| self.error(kind))
    }

    /// Opens a regular file. Does not wait for anything but the file system, and does not open a FIFO: its writer would
    /// take that for a reader.
    pub(in crate::key) fn open_regular(&self) -> Result<Opened, KeyFileError> {
        self.try_open(|_| Err(KeyFileErrorKind::Fifo)).map_err(|kind| self.error(kind))
    }

    fn try_open(
        &self,
        open_fifo: impl FnOnce(&Path) -> Result<Opened, KeyFileErrorKind>,
    ) -> Result<Opened, KeyFileErrorKind> {
        // Opening a device can have side effects.
        match FileKind::of(&fs::metadata(&self.path).map_err(KeyFileErrorKind::Io)?) {
            FileKind::Regular => {}
            FileKind::Fifo => return open_fifo(&self.path),
            FileKind::Other(found) => return Err(KeyFileErrorKind::NotAFile { found }),
        }
        // The path may refer to another file by now.
        let opened = open_without_blocking(&self.path).and_then(opened).map_err(KeyFileErrorKind::Io)?;
        match FileKind::of(&opened.metadata) {
            FileKind::Regular => Ok(opened),
            FileKind::Fifo => Err(KeyFileErrorKind::Fifo),
            FileKind::Other(found) => Err(KeyFileErrorKind::NotAFile { found }),
        }
    }
}

fn opened(file: File) -> io::Result<Opened> {
    let metadata = file.metadata()?;
    Ok(Opened { file, metadata })
}

/// Opens a file for reading. If it is a FIFO, this does not wait for a writer.
#[cfg(unix)]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?.into())
}

#[cfg(not(unix))]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// The kind of object that a path refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code, reason = "FIFOs exist on Unix only"))]
pub(in crate::key) enum FileKind {
    Regular,
    Fifo,
    Other(&'static str),
}

impl FileKind {
    pub(in crate::key) fn of(metadata: &Metadata) -> Self {
        let file_type = metadata.file_type();
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt as _;

            if file_type.is_fifo() {
                return Self::Fifo;
            }
            if file_type.is_socket() {
                return Self::Other("socket");
            }
            if file_type.is_char_device() || file_type.is_block_device() {
                return Self::Other("device");
            }
        }
        match () {
            () if file_type.is_file() => Self::Regular,
            () if file_type.is_dir() => Self::Other("directory"),
            () => Self::Other("special file"),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// The file is replaced between the opening and the check.
    #[test]
    fn permissions_are_those_of_the_opened_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (name, mode) in [("keys", 0o644), ("other", 0o600)] {
            fs::write(at(name), "alice:0011223344556677\n").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let file = KeyFile::new(at("keys"));
        let opened = file.open_regular().unwrap();
        fs::rename(at("other"), at("keys")).unwrap();
        let error = file.content(opened).unwrap_err();
        assert!(matches!(error.kind(), KeyFileErrorKind::InsecurePermissions { mode: 0o644, .. }), "{error}");
        file.read().unwrap();
    }

    /// The path refers to a regular file when its type is found out, and to a FIFO when it is opened.
    #[test]
    fn opening_does_not_wait_for_a_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(open_without_blocking(&path).and_then(opened)).unwrap());
        let opened = receiver.recv_timeout(Duration::from_secs(10)).expect("the file is opened").unwrap();
        assert_eq!(FileKind::of(&opened.metadata), FileKind::Fifo);
    }
}
