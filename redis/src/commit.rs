//! Makes the keys that are valid now the current ones of a server: after a change, and when a key begins or ends, whether
//! or not Redis is there.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tower_challenge::{KeyEntry, KeyError, KeyId};
use tracing::error;

use crate::error::Error;
use crate::state::{PARTS, State, Taken};

/// The longest wait for a key that begins or ends, so that a clock that is set is noticed.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Makes new keys the current ones.
pub(crate) type Replace = Arc<dyn Fn(Vec<KeyEntry>) -> Result<(), KeyError> + Send + Sync>;

pub(crate) struct Committer {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) replace: Replace,
    pub(crate) state_file: Option<PathBuf>,
    /// Which store it is, once that is known.
    store: OnceLock<String>,
    changed: Notify,
    /// Held during a commit: an older one never comes after a newer one. Has the time at which a key begins or ends next.
    next: tokio::sync::Mutex<Option<u64>>,
}

/// What a state file has.
#[derive(Deserialize)]
struct Saved {
    store: String,
    /// The version and the revoked version of each id, which is in hexadecimal.
    ids: BTreeMap<String, (u64, u64)>,
}

/// The same, to be written.
#[derive(Serialize)]
struct ToSave {
    store: String,
    #[serde(serialize_with = "in_hex")]
    ids: Vec<(KeyId, (u64, u64))>,
}

fn in_hex<S: Serializer>(ids: &[(KeyId, (u64, u64))], serializer: S) -> Result<S::Ok, S::Error> {
    let in_hex = |(id, versions): &(KeyId, _)| (base16ct::lower::encode_string(id.as_bytes()), *versions);
    serializer.collect_map(ids.iter().map(in_hex))
}

impl Committer {
    pub(crate) fn new(state: Arc<Mutex<State>>, replace: Replace, state_file: Option<PathBuf>) -> Self {
        let (store, changed, next) = (OnceLock::new(), Notify::new(), tokio::sync::Mutex::new(None));
        Self { state, replace, state_file, store, changed, next }
    }

    /// Asks for a commit. Several requests may become one.
    pub(crate) fn request(&self) {
        self.changed.notify_one();
    }

    /// Commits whenever it is asked for, and when a key begins or ends.
    pub(crate) async fn run(&self) -> ! {
        loop {
            let next = *self.next.lock().await;
            let wait = next.map_or(MAX_WAIT, |next| remaining(next).min(MAX_WAIT));
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(wait) => {
                    if next.is_none_or(|next| next > now()) {
                        continue;
                    }
                }
            }
            if let Err(error) = self.commit().await {
                error!(%error, "keys not replaced, or the state file not written");
            }
        }
    }

    /// Replaces the keys, in a thread of its own: a million take seconds.
    pub(crate) async fn commit(&self) -> Result<(), Error> {
        let mut next = self.next.lock().await;
        let (state, replace) = (Arc::clone(&self.state), Arc::clone(&self.replace));
        let file = self.state_file.clone().zip(self.store.get().cloned());
        let committed = spawn_blocking(move || {
            let saved = file.is_some().then(Vec::new);
            let mut taken = Taken { saved, ..Taken::default() };
            let now = now();
            let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
            for part in 0..PARTS {
                lock().take(part, now, &mut taken);
            }
            lock().set_counts(taken.counts);
            let replaced = replace(taken.entries).map_err(Error::Key);
            // Also if the keys were not replaced: what was revoked is remembered.
            let written = match file.zip(taken.saved) {
                Some(((path, store), ids)) => write(&path, &ToSave { store, ids }),
                None => Ok(()),
            };
            (taken.next, replaced.and(written))
        });
        let panicked = |_| (None, Err(Error::Key(KeyError::Unsuitable("a panic while keys were replaced"))));
        let (changes, committed) = committed.await.unwrap_or_else(panicked);
        *next = changes;
        committed
    }

    /// Takes what a previous process has seen of this store.
    pub(crate) fn restore(&self, store: &[u8; 16]) -> Result<(), Error> {
        let store = base16ct::lower::encode_string(store);
        if let Some(path) = &self.state_file {
            match std::fs::read(path) {
                Ok(text) => self.restore_from(path, &text, &store)?,
                // The first start.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file(path, error)),
            }
        }
        self.store.get_or_init(|| store);
        Ok(())
    }

    fn restore_from(&self, path: &Path, text: &[u8], store: &str) -> Result<(), Error> {
        let invalid =
            || Error::file(path, std::io::Error::other("not a state file; remove it to begin anew"));
        let saved: Saved = serde_json::from_slice(text).map_err(|_| invalid())?;
        if saved.store != store {
            return Err(Error::AnotherStore);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.restore(&saved.ids).ok_or_else(invalid)
    }
}

/// Writes a file and renames it over the old one.
fn write(path: &Path, saved: &ToSave) -> Result<(), Error> {
    let in_file = |error| Error::file(path, error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(in_file)?;
    let text = serde_json::to_vec(saved).unwrap_or_else(|_| unreachable!("strings and numbers"));
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(in_file)?;
    file.persist(path).map_err(|error| in_file(error.error))?;
    Ok(())
}

/// Returns the seconds since 1970.
pub(crate) fn now() -> u64 {
    since_1970().as_secs()
}

pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the time until then.
fn remaining(seconds: u64) -> Duration {
    // At least a moment, so that a clock that stands still does not make this spin.
    Duration::from_secs(seconds).saturating_sub(since_1970()).max(Duration::from_millis(10))
}
