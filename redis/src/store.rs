//! The management of a store: what `challenge-keys` does.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, cmd, pipe};
use tower_challenge::{DerivedKeys, Key, KeyEntry, KeyError, KeyId};

use crate::commit::{now, since_1970};
use crate::connect::{client, connect};
use crate::error::{Error, printable};
use crate::layout::{DEFAULT_PREFIX, Layout, Name, pattern};
use crate::secret::StoreSecret;
use crate::state::Counts;
use crate::status::Report;
use crate::value::{Form, Keys, MAX_KEYS, Marker, Revoked, StoredKey};

/// How many names are read at a time.
const BATCH: usize = 1000;

/// How many ids are changed at a time: Redis compares each name that is watched with all others of the connection.
const CHANGE_BATCH: usize = 100;

/// How often a revocation is tried, if other changes of the id come first.
const REVOKE_ATTEMPTS: usize = 100;

/// How far the versions of an id may be ahead of this clock: by changes in a short time, or by another manager's clock, in
/// seconds.
const LOST_MARGIN: u64 = 24 * 60 * 60;

/// The lengths of keys, in bytes: what `noise` and `mutual` accept, and what fits into a value.
const KEY_LENS: std::ops::RangeInclusive<usize> = 16..=1024;

/// The keys of a fleet in Redis, for their management. Servers use [`RedisKeys`](crate::RedisKeys).
///
/// Every method connects anew, and every change is one command, or one transaction that fails with
/// [`Error::Conflict`] if another change of the same id comes first.
#[derive(Debug)]
pub struct Store {
    client: Client,
    layout: Layout,
    secret: StoreSecret,
}

/// An id of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedId {
    /// The id.
    pub id: KeyId,
    /// How many of its keys are valid now. 0 for derived keys, which are not in the store.
    pub valid: usize,
    /// Whether it is revoked.
    pub revoked: bool,
    /// When the next of its keys ends, in seconds since 1970.
    pub next_end: Option<u64>,
    /// Whether a value of it was changed, or sealed with another secret.
    pub is_unreadable: bool,
}

/// What a server has last said of itself.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// How long ago.
    pub age: Duration,
    /// How stale its keys were then.
    pub staleness: Duration,
    /// How many ids had keys.
    pub ids: usize,
    /// How many ids were revoked.
    pub revoked: usize,
    /// Whether it had seen all that is in the store now.
    pub is_current: bool,
}

impl Store {
    /// Opens the store at `url`: `redis://`, `rediss://` for TLS, or `redis+unix://`. Nothing is connected.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is invalid.
    pub fn new(url: &str, secret: StoreSecret) -> Result<Self, Error> {
        Ok(Self { client: client(url)?, layout: Layout::new(DEFAULT_PREFIX), secret })
    }

    /// Sets the prefix of all names in Redis. Default: `{tower-challenge}`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.layout = Layout::new(prefix);
        self
    }

    /// Initializes an empty store.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Initialized`] if it has a marker already, also one of another secret, and [`Error::NotEmpty`] if it
    /// has lost its marker alone.
    pub async fn init(&self, form: Form) -> Result<(), Error> {
        let mut redis = self.connect().await?;
        let marker: Option<Vec<u8>> = cmd("GET").arg(self.layout.marker()).query_async(&mut redis).await?;
        if marker.is_some() {
            return Err(Error::Initialized);
        }
        let marker = Marker::generate(form)?.seal(&self.secret)?;
        if self.has_values(&mut redis).await? {
            return Err(Error::NotEmpty);
        }
        let set: bool = cmd("SETNX").arg(self.layout.marker()).arg(marker).query_async(&mut redis).await?;
        if set { Ok(()) } else { Err(Error::Initialized) }
    }

    /// Adds an id with a new key, and returns the key. In a store of derived keys, returns the key of the id.
    ///
    /// An id that was revoked can be added again, with a new key. A derived key that was revoked stays so.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Exists`] if the id has keys already: [`rotate`](Self::rotate) it. Returns
    /// [`Error::UnknownId`] for a derived key that is revoked.
    pub async fn add(&self, id: &KeyId) -> Result<Key, Error> {
        let mut redis = self.connect().await?;
        let marker = self.marker(&mut redis).await?;
        if marker.form == Form::Derived {
            let revoked = self.revoked(&mut redis, &marker, id).await?;
            let is_revoked = revoked.is_some();
            return if is_revoked {
                Err(Error::UnknownId(id.clone()))
            } else {
                Ok(DerivedKeys::derive(self.secret.master(), id)?)
            };
        }
        let key = Key::generate()?;
        self.change(&mut redis, &marker, id, |mut keys, revoked| {
            if keys.version > revoked && keys.keys.iter().any(|key| key.not_after.is_none()) {
                return Err(Error::Exists(id.clone()));
            }
            keys.keys = vec![StoredKey { key: key.clone(), not_before: 0, not_after: None }];
            Ok(keys)
        })
        .await?;
        Ok(key)
    }

    /// Adds a new key to an id, and lets its present keys end after `overlap`. Returns the new key.
    ///
    /// # Errors
    ///
    /// Returns [`Error::UnknownId`] if the id has no key, and [`Error::TooManyKeys`] if it has four.
    pub async fn rotate(&self, id: &KeyId, overlap: Duration) -> Result<Key, Error> {
        let mut redis = self.connect().await?;
        let marker = self.sealed(&mut redis).await?;
        let key = Key::generate()?;
        // Rounded up: the present keys are valid for the whole overlap.
        let end = since_1970().saturating_add(overlap);
        let end = end.as_secs().saturating_add(u64::from(!overlap.is_zero() && end.subsec_nanos() > 0));
        self.change(&mut redis, &marker, id, |mut keys, revoked| {
            keys.keys.retain(|key| key.not_after.is_none_or(|end| end > now()));
            if keys.version <= revoked || keys.keys.is_empty() {
                return Err(Error::UnknownId(id.clone()));
            }
            if keys.keys.len() == MAX_KEYS {
                return Err(Error::TooManyKeys(id.clone()));
            }
            for old in &mut keys.keys {
                old.not_after = Some(old.not_after.map_or(end, |earlier| earlier.min(end)));
            }
            keys.keys.push(StoredKey { key: key.clone(), not_before: 0, not_after: None });
            Ok(keys)
        })
        .await?;
        Ok(key)
    }

    /// Revokes all keys of an id, on all servers, and ends their sessions.
    ///
    /// Nothing is deleted: the keys are overwritten, and the revocation stays.
    ///
    /// # Errors
    ///
    /// Returns an error if Redis cannot be reached. Revoking an id that is revoked, or was never there, is none.
    pub async fn revoke(&self, id: &KeyId) -> Result<(), Error> {
        let mut redis = self.connect().await?;
        let marker = self.marker(&mut redis).await?;
        for _ in 0..REVOKE_ATTEMPTS {
            match self.try_revoke(&mut redis, &marker, id).await {
                // A key that was added meanwhile must not survive.
                Err(Error::Conflict) => {}
                other => return other,
            }
        }
        Err(Error::Conflict)
    }

    async fn try_revoke(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
        id: &KeyId,
    ) -> Result<(), Error> {
        let (keys_name, revoked_name) = self.names(id);
        cmd("WATCH").arg(&keys_name).arg(&revoked_name).query_async::<()>(redis).await?;
        // Servers may know keys that Redis has lost, of a version that is ahead of this clock.
        let lost = now().saturating_add(LOST_MARGIN);
        let mut newest = now();
        for known in [
            self.keys(redis, marker, id).await.map(|keys| keys.map_or(lost, |keys| keys.version)),
            self.revoked(redis, marker, id).await.map(Option::unwrap_or_default),
        ] {
            newest = newest.max(match known {
                Err(Error::Unreadable(_)) => lost,
                known => known?,
            });
        }
        let version = newest.saturating_add(1);
        let tombstone = Revoked { version }.seal(&self.secret, marker, id)?;
        let mut pipe = pipe();
        pipe.atomic().set(revoked_name, tombstone).ignore();
        if marker.form == Form::Sealed {
            let nothing = Keys { version, keys: Vec::new() }.seal(&self.secret, marker, id)?;
            pipe.set(keys_name, nothing).ignore();
        }
        let set: Option<()> = pipe.query_async(redis).await?;
        set.ok_or(Error::Conflict)
    }

    /// Returns all ids, in order. Of derived keys, only the revoked ids are in the store.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be read.
    pub async fn list(&self) -> Result<Vec<ListedId>, Error> {
        let mut redis = self.connect().await?;
        let marker = self.marker(&mut redis).await?;
        let now = now();
        let all = self.all(&mut redis, &marker).await?;
        let listed = all.into_iter().map(|(id, Both { keys, revoked, is_unreadable })| {
            let keys = keys.filter(|keys| keys.version > revoked).map_or(Vec::new(), |keys| keys.keys);
            let valid = keys.iter().filter(|key| key.is_valid(now)).count();
            let next_end = keys.iter().filter_map(|key| key.not_after).filter(|end| *end > now).min();
            ListedId { id, valid, revoked: revoked > 0 && keys.is_empty(), next_end, is_unreadable }
        });
        Ok(listed.collect())
    }

    /// Returns all keys that are valid now, for a key file.
    ///
    /// # Errors
    ///
    /// Returns [`Error::DerivedKeys`] for derived keys, which are not in the store, and [`Error::Unreadable`] if a value was
    /// changed or sealed with another secret.
    pub async fn export(&self) -> Result<Vec<KeyEntry>, Error> {
        let mut redis = self.connect().await?;
        let marker = self.sealed(&mut redis).await?;
        let now = now();
        let mut entries = Vec::new();
        for (id, Both { keys, revoked, is_unreadable }) in self.all(&mut redis, &marker).await? {
            if is_unreadable {
                return Err(Error::Unreadable(id));
            }
            let Some(keys) = keys.filter(|keys| keys.version > revoked) else { continue };
            for key in keys.keys.into_iter().filter(|key| key.is_valid(now)) {
                entries.push(KeyEntry::new(id.clone(), key.key)?);
            }
        }
        Ok(entries)
    }

    /// Sets the keys of ids to those of a key file, up to four each. Other ids are unchanged. Returns how many ids were set.
    ///
    /// # Errors
    ///
    /// Returns [`Error::DerivedKeys`] for derived keys, [`Error::TooManyKeys`] before anything is changed, and
    /// [`Error::Revoked`] for an id that was revoked: the file may be older than that. Ids before it may have been set.
    pub async fn import(&self, entries: &[KeyEntry]) -> Result<usize, Error> {
        let mut redis = self.connect().await?;
        let marker = self.sealed(&mut redis).await?;
        let mut by_id: BTreeMap<&KeyId, Vec<StoredKey>> = BTreeMap::new();
        for entry in entries {
            if !KEY_LENS.contains(&entry.key().expose_secret().len()) {
                return Err(Error::Key(KeyError::UnsuitableKeyOfId {
                    id: entry.id().clone(),
                    reason: "a key of the fleet must have 16 to 1,024 bytes",
                }));
            }
            let keys = by_id.entry(entry.id()).or_default();
            keys.push(StoredKey { key: entry.key().clone(), not_before: 0, not_after: None });
            if keys.len() > MAX_KEYS {
                return Err(Error::TooManyKeys(entry.id().clone()));
            }
        }
        let count = by_id.len();
        let mut by_id: Vec<_> = by_id.into_iter().collect();
        for batch in by_id.chunks_mut(CHANGE_BATCH) {
            self.set_keys(&mut redis, &marker, batch).await?;
        }
        Ok(count)
    }

    /// Returns what each server has said of itself, the latest first.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be read.
    pub async fn status(&self) -> Result<Vec<ServerStatus>, Error> {
        let mut redis = self.connect().await?;
        let marker = self.marker(&mut redis).await?;
        let changes = self.all(&mut redis, &marker).await?.into_values().fold(0_u64, |sum, both| {
            sum.wrapping_add(both.keys.map_or(0, |keys| keys.version)).wrapping_add(both.revoked)
        });
        let reports: BTreeMap<Vec<u8>, Vec<u8>> =
            cmd("HGETALL").arg(self.layout.servers()).query_async(&mut redis).await?;
        let now = now();
        let mut servers: Vec<_> = reports
            .into_iter()
            .filter_map(|(name, report)| {
                let Report { at, counts: Counts { ids, revoked, changes: seen }, staleness } =
                    serde_json::from_slice(&report).ok()?;
                Some(ServerStatus {
                    // Whoever can write to Redis chooses it.
                    name: printable(&String::from_utf8_lossy(&name), 64),
                    age: Duration::from_secs(now.saturating_sub(at)),
                    staleness: Duration::try_from_secs_f64(staleness).ok()?,
                    ids,
                    revoked,
                    is_current: seen == changes,
                })
            })
            .collect();
        servers.sort_by_key(|server| server.age);
        Ok(servers)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        connect(&self.client, |_| {}).await
    }

    /// Returns the next names with a prefix, and the cursor after them, which is 0 at the end.
    async fn scan(
        &self,
        redis: &mut MultiplexedConnection,
        prefix: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<Name>), Error> {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern(prefix)).arg("COUNT").arg(BATCH);
        let (next, found): (u64, Vec<Vec<u8>>) = scan.query_async(redis).await?;
        Ok((next, found.iter().filter_map(|name| self.layout.parse(name)).collect()))
    }

    /// Returns whether there is any value of an id.
    async fn has_values(&self, redis: &mut MultiplexedConnection) -> Result<bool, Error> {
        for prefix in [self.layout.revoked_prefix(), self.layout.keys_prefix()] {
            let mut cursor = 0;
            loop {
                let (next, names) = self.scan(redis, &prefix, cursor).await?;
                if !names.is_empty() {
                    return Ok(true);
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(false)
    }

    async fn marker(&self, redis: &mut MultiplexedConnection) -> Result<Marker, Error> {
        let value: Option<Vec<u8>> = cmd("GET").arg(self.layout.marker()).query_async(redis).await?;
        Marker::open(&self.secret, &value.ok_or(Error::NoMarker)?)
    }

    async fn sealed(&self, redis: &mut MultiplexedConnection) -> Result<Marker, Error> {
        let marker = self.marker(redis).await?;
        if marker.form == Form::Sealed { Ok(marker) } else { Err(Error::DerivedKeys) }
    }

    fn names(&self, id: &KeyId) -> (Vec<u8>, Vec<u8>) {
        (self.layout.of(&Name::Keys(id.clone())), self.layout.of(&Name::Revoked(id.clone())))
    }

    async fn keys(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
        id: &KeyId,
    ) -> Result<Option<Keys>, Error> {
        let value: Option<Vec<u8>> = cmd("GET").arg(self.names(id).0).query_async(redis).await?;
        value.map(|value| self.open_keys(marker, id, &value)).transpose()
    }

    /// Returns the version up to which the keys of an id are revoked.
    async fn revoked(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
        id: &KeyId,
    ) -> Result<Option<u64>, Error> {
        let value: Option<Vec<u8>> = cmd("GET").arg(self.names(id).1).query_async(redis).await?;
        value.map(|value| self.open_revoked(marker, id, &value)).transpose()
    }

    fn open_keys(&self, marker: &Marker, id: &KeyId, value: &[u8]) -> Result<Keys, Error> {
        Keys::open(&self.secret, marker, id, value).ok_or_else(|| Error::Unreadable(id.clone()))
    }

    fn open_revoked(&self, marker: &Marker, id: &KeyId, value: &[u8]) -> Result<u64, Error> {
        let opened = Revoked::open(&self.secret, marker, id, value);
        opened.map(|revoked| revoked.version).ok_or_else(|| Error::Unreadable(id.clone()))
    }

    /// Sets the keys of some ids, unless another change of one of them comes first.
    async fn set_keys(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
        ids: &mut [(&KeyId, Vec<StoredKey>)],
    ) -> Result<(), Error> {
        let (mut watch, mut get) = (cmd("WATCH"), cmd("MGET"));
        for (id, _) in &*ids {
            let (keys_name, revoked_name) = self.names(id);
            watch.arg(&keys_name).arg(&revoked_name);
            get.arg(keys_name).arg(revoked_name);
        }
        watch.query_async::<()>(redis).await?;
        let values: Vec<Option<Vec<u8>>> = get.query_async(redis).await?;
        let mut pipe = pipe();
        pipe.atomic();
        for ((id, keys), values) in ids.iter_mut().zip(values.chunks(2)) {
            let (mut known, mut revoked) = (0, 0);
            if let Some(Some(value)) = values.first() {
                known = self.open_keys(marker, id, value)?.version;
            }
            if let Some(Some(value)) = values.get(1) {
                revoked = self.open_revoked(marker, id, value)?;
            }
            if revoked > 0 {
                // The file may be older than the revocation, also if the id has a new key since.
                return Err(Error::Revoked((*id).clone()));
            }
            let newest = known.max(revoked).max(now());
            let keys = Keys { version: newest.saturating_add(1), keys: std::mem::take(keys) };
            pipe.set(self.names(id).0, keys.seal(&self.secret, marker, id)?).ignore();
        }
        let set: Option<()> = pipe.query_async(redis).await?;
        set.ok_or(Error::Conflict)
    }

    /// Changes the keys of an id, unless another change comes first.
    async fn change(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
        id: &KeyId,
        change: impl FnOnce(Keys, u64) -> Result<Keys, Error>,
    ) -> Result<(), Error> {
        let (keys_name, revoked_name) = self.names(id);
        cmd("WATCH").arg(&keys_name).arg(&revoked_name).query_async::<()>(redis).await?;
        let keys = self.keys(redis, marker, id).await?.unwrap_or(Keys { version: 0, keys: Vec::new() });
        let revoked = self.revoked(redis, marker, id).await?.unwrap_or(0);
        let newest = keys.version.max(revoked);
        let mut changed = change(keys, revoked)?;
        // Above all versions that were there, also if the store has lost some: the clock has gone on since.
        changed.version = newest.max(now()).saturating_add(1);
        let value = changed.seal(&self.secret, marker, id)?;
        let set: Option<()> = pipe().atomic().set(keys_name, value).ignore().query_async(redis).await?;
        set.ok_or(Error::Conflict)
    }

    /// Reads everything.
    async fn all(
        &self,
        redis: &mut MultiplexedConnection,
        marker: &Marker,
    ) -> Result<BTreeMap<KeyId, Both>, Error> {
        let mut all: BTreeMap<KeyId, Both> = BTreeMap::new();
        for prefix in [self.layout.revoked_prefix(), self.layout.keys_prefix()] {
            let mut cursor = 0;
            loop {
                let (next, names) = self.scan(redis, &prefix, cursor).await?;
                for names in names.chunks(BATCH) {
                    let mut get = cmd("MGET");
                    for name in names {
                        get.arg(self.layout.of(name));
                    }
                    let values: Vec<Option<Vec<u8>>> = get.query_async(redis).await?;
                    for (name, value) in names.iter().zip(values) {
                        match (name, value) {
                            (Name::Keys(id), Some(value)) => {
                                let both = all.entry(id.clone()).or_default();
                                match self.open_keys(marker, id, &value) {
                                    Ok(keys) => both.keys = Some(keys),
                                    Err(_) => both.is_unreadable = true,
                                }
                            }
                            (Name::Revoked(id), Some(value)) => {
                                let both = all.entry(id.clone()).or_default();
                                match self.open_revoked(marker, id, &value) {
                                    Ok(revoked) => both.revoked = revoked,
                                    Err(_) => both.is_unreadable = true,
                                }
                            }
                            _ => {}
                        }
                    }
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(all)
    }
}

/// What a store has of an id.
#[derive(Default)]
struct Both {
    keys: Option<Keys>,
    revoked: u64,
    /// Whether one of them could not be opened.
    is_unreadable: bool,
}
