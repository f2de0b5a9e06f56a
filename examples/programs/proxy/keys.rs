//! Keys that are replaced when their file changes.

use std::time::Duration;

use tokio::sync::watch;
use tower_challenge::mutual::{Client, KeyRing};
use tower_challenge::{Connector, KeyEntry, KeyError, KeyFile};

use super::Settings;
use super::log::Event;
use super::shared::BoxError;
use super::shared::key_file::{find, key_file, key_id as parse_key_id, read};
use super::shared::program::Stopping;

/// How often the file is checked. A key that was removed is accepted for at most this long.
const PERIOD: Duration = Duration::from_secs(1);

/// Returns all keys of the file, for the server.
pub(crate) async fn ring(settings: &Settings, stopping: &mut Stopping) -> Result<KeyRing, BoxError> {
    let file = key_file(&settings.key_file, settings.allow_group_read);
    let entries = read(file.clone(), stopping).await?;
    let ring = KeyRing::new(entries).map_err(|error| in_file(&file, error))?;
    let clone = ring.clone();
    watch_file(file, move |keys| clone.replace(keys));
    Ok(ring)
}

/// Returns the connector with the client's key. A borrow of it is the current one.
pub(crate) async fn connector(
    settings: &Settings,
    key_id: Option<&str>,
    stopping: &mut Stopping,
) -> Result<watch::Receiver<Connector<Client>>, BoxError> {
    let (audience, timeout) = (settings.audience()?, settings.timeout);
    let key_id = parse_key_id(key_id)?;
    let file = key_file(&settings.key_file, settings.allow_group_read);
    let entries = read(file.clone(), stopping).await?;
    let entry = find(&entries, key_id.as_ref()).map_err(|error| in_file(&file, error))?;
    let make = move |entry: &KeyEntry| {
        let mechanism = Client::from_entry(entry, audience.clone())?;
        Ok::<_, KeyError>(Connector::new(mechanism).timeout(timeout))
    };
    let (sender, current) = watch::channel(make(entry).map_err(|error| in_file(&file, error))?);
    watch_file(file, move |entries| {
        let entry = find(&entries, key_id.as_ref()).map_err(|_| match &key_id {
            Some(id) => KeyError::UnsuitableKeyOfId { id: id.clone(), reason: "it is no longer in the file" },
            None => KeyError::NoKeys,
        })?;
        sender.send_replace(make(entry)?);
        Ok(())
    });
    Ok(current)
}

fn in_file(file: &KeyFile, error: impl std::fmt::Display) -> BoxError {
    format!("key file {}: {error}", file.path().display()).into()
}

fn watch_file(file: KeyFile, replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static) {
    tokio::spawn(file.watch(PERIOD, replace, |outcome| Event::Keys(outcome).log()));
}
