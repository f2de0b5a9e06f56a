use std::fmt;
use std::future::{Ready, ready};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tower_challenge::key::{KeySet, KeySource, PrepareKey};
use tower_challenge::{BoxError, DerivedKeys, Key, KeyEntry, KeyError, KeyId, KeyRing};
use tracing::error;

use crate::commit::{Committer, Replace};
use crate::connect::client;
use crate::error::Error;
use crate::feed::Feed;
use crate::layout::{DEFAULT_PREFIX, Layout};
use crate::secret::StoreSecret;
use crate::state::State;
use crate::status::Status;
use crate::value::Form;

/// A [`KeySource`] with all keys of a store in memory, which follows the store in Redis.
///
/// A handshake never waits for Redis. If Redis cannot be reached, the keys that are known stay in use, and
/// [`staleness`](Self::staleness) grows. Cheap to clone.
///
/// The feed ends with the last clone. **Keep a clone for as long as there are sessions:** a server that has been shut down
/// drops its mechanism before its sessions have ended, and revocations would not reach them.
///
/// Keys end for sessions, too: when an id is revoked, when a key is rotated out, and when its validity ends, the
/// [`Revocation`](tower_challenge::key::Revocation) of its sessions says so. With
/// [`end_revoked_sessions`](tower_challenge::ChallengeLayer::end_revoked_sessions) they are ended.
///
/// ```no_run
/// use std::time::Duration;
///
/// use tower_challenge::ChallengeLayer;
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge_redis::{RedisKeys, StoreSecret};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = StoreSecret::read("/etc/orders/store.secret")?;
/// let keys = RedisKeys::builder("redis://redis.internal", secret)
///     .state_file("/var/lib/orders/keys.json")
///     .connect()
///     .await?;
/// let server = mutual::Server::new(keys, Audience::new("orders")?);
/// let layer = ChallengeLayer::new(server)
///     .end_revoked_sessions(Duration::ZERO);
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
pub struct RedisKeys<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    ring: KeyRing<K>,
    state: Arc<Mutex<State>>,
    secret: Arc<StoreSecret>,
    form: Form,
    status: Arc<Status>,
    max_stale: Option<Duration>,
    _feed: AbortOnDropHandle<()>,
}

/// Builds [`RedisKeys`].
#[must_use]
pub struct RedisKeysBuilder {
    url: String,
    secret: StoreSecret,
    prefix: String,
    name: Option<String>,
    state_file: Option<PathBuf>,
    max_stale: Option<Duration>,
    load_timeout: Duration,
}

impl RedisKeys<()> {
    /// Returns a builder for the store at `url`: `redis://`, `rediss://` for TLS, or `redis+unix://`, with user and
    /// password if there are any.
    pub fn builder(url: impl Into<String>, secret: StoreSecret) -> RedisKeysBuilder {
        RedisKeysBuilder {
            url: url.into(),
            secret,
            prefix: DEFAULT_PREFIX.to_owned(),
            name: None,
            state_file: None,
            max_stale: None,
            load_timeout: Duration::from_secs(60),
        }
    }
}

impl RedisKeysBuilder {
    /// Sets the prefix of all names in Redis. Default: `{tower-challenge}`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the name under which this server reports what it has seen, for `challenge-keys status`. Default: the process
    /// id and random digits.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps the versions and revocations of all ids in this file, of mode 0600. Without it, a Redis that goes back to an
    /// older state can fool a server that restarts.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_file = Some(path.into());
        self
    }

    /// Refuses all new handshakes while Redis has not been seen for this long. Default: never.
    ///
    /// This ends how long a revoked key may be accepted by a server that cannot reach Redis. But then no new client is accepted
    /// when Redis is down for longer.
    pub fn max_stale(mut self, max: Duration) -> Self {
        self.max_stale = Some(max);
        self
    }

    /// Sets how long the first load may take. Default: 60 seconds.
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.load_timeout = timeout;
        self
    }

    /// Connects and loads the store, and then follows it in a task of the current runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be loaded: Redis is not there, the store was never initialized or was wiped,
    /// or it belongs to another secret. A server must not begin with keys that it does not know.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub async fn connect<K>(self) -> Result<RedisKeys<K>, Error>
    where
        K: PrepareKey + Send + Sync + 'static,
    {
        let client = client(&self.url)?;
        let secret = Arc::new(self.secret);
        let state = Arc::new(Mutex::new(State::default()));
        let status = Arc::new(Status::new());
        let ring = KeyRing::with_max_keys(usize::MAX, [placeholder()?])?;
        let replaced = ring.clone();
        let replace: Replace = Arc::new(move |mut entries| {
            // A ring is never empty.
            if entries.is_empty() {
                entries.push(placeholder()?);
            }
            match replaced.replace(entries.iter().cloned()) {
                Err(KeyError::UnsuitableKeyOfId { .. }) => {
                    // One key must not keep all others from being replaced.
                    entries.retain(|entry| match K::prepare(entry.key()) {
                        Ok(_) => true,
                        Err(error) => {
                            error!(id = %entry.id(), %error, "a key cannot be used, and is left out");
                            false
                        }
                    });
                    entries.push(placeholder()?);
                    replaced.replace(entries)
                }
                other => other,
            }
        });
        let name = self.name.map_or_else(random_name, Ok)?;
        let (marker, layout) = (None, Layout::new(self.prefix));
        let (secret_of_feed, state_of_feed) = (Arc::clone(&secret), Arc::clone(&state));
        let committer = Arc::new(Committer::new(Arc::clone(&state), replace, self.state_file));
        let (loaded, is_loaded) = oneshot::channel();
        let feed = Feed {
            client,
            layout,
            secret: secret_of_feed,
            state: state_of_feed,
            status: Arc::clone(&status),
            committer,
            name,
            marker,
        };
        let feed = AbortOnDropHandle::new(tokio::spawn(feed.run(loaded)));
        let outcome = tokio::time::timeout(self.load_timeout, is_loaded).await;
        let form = outcome.map_err(|_| Error::TimedOut)?.map_err(|_| Error::TimedOut)??;
        let shared = Shared { ring, state, secret, form, status, max_stale: self.max_stale, _feed: feed };
        Ok(RedisKeys { shared: Arc::new(shared) })
    }
}

impl<K> RedisKeys<K> {
    /// Returns how long ago everything in the store was known to this server. It stays below a second while Redis
    /// answers.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.shared.status.staleness()
    }

    /// Returns whether the store is being followed.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.status.is_connected()
    }

    /// Returns how the keys of the store are made.
    #[must_use]
    pub fn form(&self) -> Form {
        self.shared.form
    }
}

impl<K: PrepareKey> Shared<K> {
    fn derived(&self, id: &[u8]) -> Result<KeySet<K>, BoxError> {
        let Ok(key_id) = KeyId::new(id) else { return Ok(KeySet::prepare(id, [])?) };
        // Derived in both cases, so that the time tells little of which ids are revoked.
        let key = DerivedKeys::derive(self.secret.master(), &key_id)?;
        let revocation = self.state.lock().unwrap_or_else(PoisonError::into_inner).derived(&key_id);
        let entry = KeyEntry::new(key_id, key)?;
        Ok(KeySet::prepare(id, revocation.map(|revocation| entry.with_revocation(revocation)))?)
    }
}

/// The lookup completes immediately. It fails if the store was not seen for longer than
/// [`max_stale`](RedisKeysBuilder::max_stale).
impl<K: PrepareKey> KeySource<K> for RedisKeys<K> {
    type Metadata = ();
    type Lookup = Ready<Result<KeySet<K>, BoxError>>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let Shared { form, max_stale, status, ring, .. } = &*self.shared;
        if max_stale.is_some_and(|max| status.staleness() > max) {
            return ready(Err("the keys are too old: Redis was not seen for too long".into()));
        }
        match form {
            Form::Sealed => ring.look_up(id),
            Form::Derived => ready(self.shared.derived(id)),
        }
    }
}

/// Creates a random key with a random id.
fn placeholder() -> Result<KeyEntry, KeyError> {
    let id = Key::generate()?.to_hex();
    KeyEntry::new(id.as_str(), Key::generate()?)
}

fn random_name() -> Result<String, Error> {
    let random = Key::generate()?;
    let digits = base16ct::lower::encode_string(&random.expose_secret()[..4]);
    Ok(format!("{}-{digits}", std::process::id()))
}

// The URL may have a password.
impl fmt::Debug for RedisKeysBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisKeysBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<K> Clone for RedisKeys<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for RedisKeys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisKeys").field("staleness", &self.staleness()).finish_non_exhaustive()
    }
}
