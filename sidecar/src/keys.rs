//! Keys that are replaced when their file changes.

use std::path::Path;
use std::time::Duration;

use metrics::counter;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tower_challenge::key::{KeyFileError, KeyFileErrorKind, PrepareKey, ReloadError};
use tower_challenge::{BoxError, ClaimedKeyId, KeyEntry, KeyError, KeyFile, KeyId, KeyRing};
use tracing::{error, info};

use crate::names;

/// How often the file is checked. A key that was removed is accepted for at most this long.
const PERIOD: Duration = Duration::from_secs(1);

/// Something made of a key file, which follows the file until this is dropped.
pub(crate) struct Watched<T> {
    pub(crate) current: T,
    pub(crate) watch: AbortOnDropHandle<()>,
}

/// A key file, and the service that uses it.
pub(crate) struct Source<'a> {
    pub(crate) service: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) allow_group_read: bool,
}

impl Source<'_> {
    fn file(&self) -> KeyFile {
        let file = KeyFile::new(self.path);
        if self.allow_group_read { file.allow_group_read() } else { file }
    }

    fn error(&self, error: impl std::fmt::Display) -> BoxError {
        format!("key file {}: {error}", self.path.display()).into()
    }
}

/// Reads the keys, at least one.
async fn read(file: &KeyFile) -> Result<Vec<KeyEntry>, BoxError> {
    let file = file.clone();
    // A pipe without a writer blocks the thread, and so does a file system that hangs.
    let entries = tokio::task::spawn_blocking(move || file.read()).await?;
    entries.map_err(|error| explain(&error).into())
}

/// Returns all keys of the file, for a server.
pub(crate) async fn ring<K>(source: &Source<'_>) -> Result<Watched<KeyRing<K>>, BoxError>
where
    K: PrepareKey + Send + Sync + 'static,
{
    let file = source.file();
    let ring = KeyRing::new(read(&file).await?).map_err(|error| source.error(error))?;
    let clone = ring.clone();
    let watch = watch_file(source, file, move |keys| clone.replace(keys));
    Ok(Watched { current: ring, watch })
}

/// Returns what `make` makes of the client's key.
pub(crate) async fn client_key<T: Send + Sync + 'static>(
    source: &Source<'_>,
    key_id: Option<&str>,
    make: impl Fn(&KeyEntry) -> Result<T, KeyError> + Send + 'static,
) -> Result<Watched<watch::Receiver<T>>, BoxError> {
    let id = key_id.map(KeyId::from_text).transpose().map_err(|error| format!("--key-id: {error}"))?;
    let file = source.file();
    let entries = read(&file).await?;
    let entry = find(&entries, id.as_ref()).ok_or_else(|| match &id {
        // Elides hexadecimal digits, which may be a short key.
        Some(id) => {
            source.error(format!("no key with the id \"{}\" (--key-id)", ClaimedKeyId::new(id.as_bytes())))
        }
        None => source.error("no keys"),
    })?;
    let (sender, current) = watch::channel(make(entry).map_err(|error| source.error(error))?);
    let watch = watch_file(source, file, move |entries| {
        let entry = find(&entries, id.as_ref()).ok_or_else(|| match &id {
            Some(id) => KeyError::UnsuitableKeyOfId { id: id.clone(), reason: "it is no longer in the file" },
            None => KeyError::NoKeys,
        })?;
        sender.send_replace(make(entry)?);
        Ok(())
    });
    Ok(Watched { current, watch })
}

/// Returns the key with this id, or the first one.
fn find<'a>(entries: &'a [KeyEntry], id: Option<&KeyId>) -> Option<&'a KeyEntry> {
    entries.iter().find(|entry| id.is_none_or(|id| entry.id() == id))
}

fn watch_file(
    source: &Source<'_>,
    file: KeyFile,
    replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static,
) -> AbortOnDropHandle<()> {
    let service = source.service.to_owned();
    let report = move |outcome: Result<usize, ReloadError>| {
        let label = if outcome.is_ok() { "ok" } else { "error" };
        counter!(names::RELOADS, "what" => "keys", "outcome" => label).increment(1);
        match outcome {
            Ok(keys) => info!(service, keys, "keys read"),
            Err(ReloadError::File(error)) => error!(service, error = explain(&error), "keys unchanged"),
            Err(error) => error!(service, %error, "keys unchanged"),
        }
    };
    AbortOnDropHandle::new(tokio::spawn(file.watch(PERIOD, replace, report)))
}

/// Says what is wrong with a key file, in terms of the flags.
pub(crate) fn explain(error: &KeyFileError) -> String {
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
