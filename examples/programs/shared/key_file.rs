//! The key file of a program.

use std::path::Path;

use tower_challenge::key::{KeyFileError, KeyFileErrorKind, ReloadError};
use tower_challenge::mutual::Audience;
use tower_challenge::{ClaimedKeyId, KeyEntry, KeyFile, KeyId};

use super::BoxError;
use super::program::Stopping;

/// Returns the file as the flags `--key-file` and `--allow-group-read` describe it.
pub(crate) fn key_file(path: &Path, allow_group_read: bool) -> KeyFile {
    let file = KeyFile::new(path);
    if allow_group_read { file.allow_group_read() } else { file }
}

/// Reads the keys, at least one, unless the program is asked to end before.
pub(crate) async fn read(file: KeyFile, stopping: &mut Stopping) -> Result<Vec<KeyEntry>, BoxError> {
    let path = file.path().to_owned();
    // A pipe without a writer blocks the thread, and so does a file system that hangs.
    let reading = tokio::task::spawn_blocking(move || file.read());
    tokio::select! {
        biased;
        () = stopping => Err(format!("key file {}: stopped before it was read", path.display()).into()),
        entries = reading => entries?.map_err(|error| explain(&error).into()),
    }
}

/// Returns the key with this id, or the first one.
pub(crate) fn find<'a>(entries: &'a [KeyEntry], id: Option<&KeyId>) -> Result<&'a KeyEntry, String> {
    let found = entries.iter().find(|entry| id.is_none_or(|id| entry.id() == id));
    found.ok_or_else(|| match id {
        // Elides hexadecimal digits, which may be a short key.
        Some(id) => format!("no key with the id \"{}\" (--key-id)", ClaimedKeyId::new(id.as_bytes())),
        None => "no keys".to_owned(),
    })
}

/// Parses `--key-id`.
///
/// This and [`audience`] are not parsers of clap, which prints the values that it rejects: one may be a key in the wrong
/// place.
pub(crate) fn key_id(id: Option<&str>) -> Result<Option<KeyId>, BoxError> {
    let id = id.map(KeyId::from_text).transpose();
    id.map_err(|error| format!("--key-id: {error}").into())
}

/// Parses `--audience`.
pub(crate) fn audience(name: &str) -> Result<Audience, BoxError> {
    Audience::new(name).map_err(|error| format!("--audience: {error}").into())
}

/// Says why the keys were not replaced.
pub(crate) fn explain_reload(error: &ReloadError) -> String {
    match error {
        ReloadError::File(error) => explain(error),
        error => error.to_string(),
    }
}

/// Says what is wrong with the file. The advice is for this program, and not for one that calls the library.
fn explain(error: &KeyFileError) -> String {
    let path = error.path().display();
    let problem = match error.kind() {
        KeyFileErrorKind::InsecurePermissions { mode, .. } => {
            let is_readable_by_group = mode & 0o077 == 0o040;
            let or_the_flag = if is_readable_by_group { ", or pass --allow-group-read" } else { "" };
            format!("permissions {mode:04o} are too open; run `chmod 600 {path}`{or_the_flag}")
        }
        KeyFileErrorKind::ForeignOwner { owner, user, .. } => {
            format!("the owner (uid {owner}) is neither this user nor root; run `chown {user} {path}`")
        }
        KeyFileErrorKind::TooLarge { max } => format!("larger than {max} bytes, the maximum; check the path"),
        _ => return error.to_string(),
    };
    format!("key file {path}: {problem}")
}
