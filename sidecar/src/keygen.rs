//! Makes keys.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tower_challenge::noise::KeyRing;
use tower_challenge::{BoxError, Key, KeyFile, KeyId};
use zeroize::Zeroizing;

use crate::keys::explain;

/// Prints the line of a new key, or appends it to a file.
pub(crate) fn run(id: &str, append: Option<&Path>) -> Result<(), BoxError> {
    let id = KeyId::from_text(id).map_err(|error| format!("the id: {error}"))?;
    let key = Key::generate()?;
    let Some(path) = append else {
        let mut out = io::stdout().lock();
        return Ok(writeln!(out, "{id}:{}", *key.to_hex())?);
    };
    let in_file = |error: io::Error| format!("key file {}: {error}", path.display());
    let mut file = open(path).map_err(in_file)?;
    let key_file = KeyFile::new(path).allow_group_read();
    // With the checks of its permissions, also if it is empty.
    let mut content = key_file.read_content().map_err(|error| explain(&error))?;
    let line_end = if content.is_empty() || content.ends_with(b"\n") { "" } else { "\n" };
    // In one write, so that a process that reads the file sees the whole line or nothing of it.
    let line = Zeroizing::new(format!("{line_end}{id}:{}\n", *key.to_hex()));
    content.extend_from_slice(line.as_bytes());
    let entries = key_file.parse(&*content).map_err(|error| explain(&error))?;
    // As the program would read it: an id has up to four keys.
    KeyRing::new(entries).map_err(|error| format!("key file {}: {error}", path.display()))?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(in_file)?;
    let _ = writeln!(io::stderr(), "a key with the id {id} was appended to {}", path.display());
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
