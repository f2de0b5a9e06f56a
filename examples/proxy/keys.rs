//! Keys that follow their file.

use std::time::Duration;

use tokio::sync::watch;
use tower_challenge::mutual::{Client, PreparedKey};
use tower_challenge::{Connector, KeyEntry, KeyError, KeyFile, KeyId, KeyRing};

use super::log::Event;
use super::{BoxError, Settings};

/// How often to look at the file: no later than this after a change, nobody gets in with a key that is gone.
const PERIOD: Duration = Duration::from_secs(1);

/// All keys of the file, for the server.
pub(crate) fn ring(settings: &Settings) -> Result<KeyRing<PreparedKey>, BoxError> {
    let file = settings.key_file();
    let ring = KeyRing::new(file.read()?)?;
    let kept = ring.clone();
    follow(file, move |keys| kept.replace(keys));
    Ok(ring)
}

/// The connector with the one key that the client uses: what is borrowed of it is the one of the moment.
pub(crate) fn connector(
    settings: &Settings,
    key_id: Option<KeyId>,
) -> Result<watch::Receiver<Connector<Client>>, BoxError> {
    let (audience, timeout) = (settings.audience.clone(), settings.timeout);
    let make = move |keys: Vec<KeyEntry>| {
        let chosen = keys.iter().find(|entry| key_id.as_ref().is_none_or(|id| entry.id() == id));
        let entry = chosen.ok_or(KeyError::Unsuitable("none has the id that was asked for"))?;
        let mechanism = Client::new(entry.id().clone(), entry.key(), audience.clone())?;
        Ok::<_, KeyError>(Connector::new(mechanism).timeout(timeout))
    };
    let file = settings.key_file();
    let (sender, current) = watch::channel(make(file.read()?)?);
    follow(file, move |keys| {
        sender.send_replace(make(keys)?);
        Ok(())
    });
    Ok(current)
}

fn follow(file: KeyFile, replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static) {
    tokio::spawn(file.follow(PERIOD, replace, |outcome| Event::Keys(outcome).log()));
}
