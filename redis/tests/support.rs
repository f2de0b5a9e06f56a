//! A store, and servers that follow it.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower_challenge::key::{KeySource as _, Revocation};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{
    Acceptor, Authenticated, Connector, HandshakeError, HandshakeErrorKind, Key, KeyEntry, KeyId,
};
use tower_challenge_redis::{Form, RedisKeys, RedisKeysBuilder, Store, StoreSecret};

use crate::relay::Relay;
use crate::server::Redis;

pub(crate) const SERVERS: usize = 5;
pub(crate) const IDS: usize = 1000;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Redis is seen again within this time.
pub(crate) const RECOVERY: Duration = Duration::from_secs(2);

pub(crate) type Keys = RedisKeys<mutual::PreparedKey>;

pub(crate) fn id(id: &str) -> KeyId {
    KeyId::new(id).unwrap()
}

/// Waits until this is so, and returns how long it took.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < LONG, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    begin.elapsed()
}

/// A server: its keys, and who gets in.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) keys: Keys,
    acceptor: Acceptor<mutual::Server<Keys>>,
}

/// A session, seen from the client.
pub(crate) struct Session {
    client: Authenticated<DuplexStream, mutual::ServerPeer>,
}

impl Server {
    pub(crate) async fn connect(builder: RedisKeysBuilder) -> Result<Self, tower_challenge_redis::Error> {
        let keys: Keys = builder.connect().await?;
        let server = mutual::Server::new(keys.clone(), Audience::new("fleet").unwrap());
        Ok(Self { keys, acceptor: Acceptor::new(server).end_revoked_sessions(Duration::ZERO) })
    }

    /// A handshake, and a session that sends back what it receives.
    pub(crate) async fn session(&self, id: &str, key: &Key) -> Result<Session, HandshakeError> {
        let (near, far) = duplex(256);
        let acceptor = self.acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(far).await else { return };
            let mut buf = [0; 64];
            while let Ok(len @ 1..) = stream.read(&mut buf).await {
                if stream.write_all(&buf[..len]).await.is_err() {
                    return;
                }
            }
        });
        let client = mutual::Client::new(id, key, Audience::new("fleet").unwrap()).unwrap();
        let client = timeout(LONG, Connector::new(client).connect(near)).await.unwrap()?;
        Ok(Session { client })
    }

    pub(crate) async fn admits(&self, id: &str, key: &Key) -> bool {
        match self.session(id, key).await {
            Ok(mut session) => session.lives().await,
            Err(error) => {
                let kind = error.kind();
                assert_eq!(kind, HandshakeErrorKind::Refused, "{error}");
                false
            }
        }
    }

    /// What a session of this id observes.
    pub(crate) async fn revocation(&self, id: &str) -> Revocation {
        let found = self.keys.look_up(id.as_bytes()).await.unwrap();
        found.iter().next().expect("a known id").identity().revocation().unwrap().clone()
    }
}

impl Session {
    pub(crate) async fn lives(&mut self) -> bool {
        let mut buf = [0; 4];
        let echo = async {
            self.client.write_all(b"ping").await?;
            self.client.read_exact(&mut buf).await
        };
        timeout(LONG, echo).await.unwrap().is_ok()
    }

    /// Waits until the server ends it.
    pub(crate) async fn end(mut self) -> Instant {
        let read = timeout(LONG, self.client.read(&mut [0; 4])).await.expect("the session goes on");
        assert!(!matches!(read, Ok(1..)));
        Instant::now()
    }
}

/// Redis with a store, a relay, and servers that connect through it.
pub(crate) struct World {
    pub(crate) redis: Redis,
    pub(crate) relay: Relay,
    pub(crate) store: Store,
    pub(crate) servers: Vec<Server>,
    sessions: Vec<Session>,
    alice: Key,
    mallory: Key,
    pub(crate) directory: TempDir,
}

impl World {
    /// `IDS` ids, of which `mallory` is revoked, and a session of `alice` with each of `SERVERS` servers.
    pub(crate) async fn new(form: Form, redis: Redis) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let secret = StoreSecret::create(directory.path().join("secret")).unwrap();
        let relay = Relay::start(redis.addr()).await;
        let store = Store::new(&redis.url(), secret).unwrap();
        store.init(form).await.unwrap();
        if form == Form::Sealed {
            store.import(&(0..IDS - 2).map(entry).collect::<Vec<_>>()).await.unwrap();
        }
        let alice = store.add(&id("alice")).await.unwrap();
        let mallory = store.add(&id("mallory")).await.unwrap();
        store.revoke(&id("mallory")).await.unwrap();
        let (servers, sessions) = (Vec::new(), Vec::new());
        let mut world = Self { redis, relay, store, servers, sessions, alice, mallory, directory };
        for _ in 0..SERVERS {
            let server = Server::connect(world.builder()).await.unwrap();
            world.sessions.push(server.session("alice", &world.alice).await.unwrap());
            world.servers.push(server);
        }
        world.check().await;
        world
    }

    pub(crate) async fn sealed() -> Self {
        Self::new(Form::Sealed, Redis::start().await).await
    }

    pub(crate) fn secret_path(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    pub(crate) fn secret(&self) -> StoreSecret {
        StoreSecret::read(self.secret_path()).unwrap()
    }

    /// A server that connects through the relay.
    pub(crate) fn builder(&self) -> RedisKeysBuilder {
        RedisKeys::builder(self.relay.url(), self.secret())
    }

    /// Known keys work, sessions go on, and nobody else gets in.
    pub(crate) async fn check(&mut self) {
        for (server, session) in self.servers.iter().zip(&mut self.sessions) {
            assert!(server.admits("alice", &self.alice).await);
            assert!(session.lives().await);
            assert!(!server.admits("alice", &Key::generate().unwrap()).await);
            assert!(!server.admits("mallory", &self.mallory).await, "un-revoked");
            assert!(!server.admits("nobody", &Key::generate().unwrap()).await);
        }
    }

    /// Returns how long it took until all servers say that they are stale.
    pub(crate) async fn all_stale(&self) -> Duration {
        eventually("stale", async || {
            self.servers
                .iter()
                .all(|server| !server.keys.is_connected() && server.keys.staleness() > Duration::from_secs(1))
        })
        .await
    }

    /// Returns how long it took until all servers follow the store again.
    pub(crate) async fn all_fresh(&self) -> Duration {
        eventually("fresh", async || {
            self.servers
                .iter()
                .all(|server| server.keys.is_connected() && server.keys.staleness() < Duration::from_secs(1))
        })
        .await
    }

    /// After a fault has ended: recovery in time, and changes are seen again, everywhere.
    pub(crate) async fn check_recovery(&mut self, what: &str) {
        let recovery = self.all_fresh().await;
        println!("{what}: seen again after {recovery:.2?}");
        assert!(recovery < RECOVERY, "{what}: {recovery:?}");
        self.check().await;
        self.check_changes(what).await;
    }

    /// A key is added and revoked, and all servers see both within a second.
    pub(crate) async fn check_changes(&self, what: &str) {
        let name = format!("new-{}", Key::generate().unwrap().expose_secret()[0]);
        let key = self.store.add(&id(&name)).await.unwrap();
        let added = eventually("added", async || {
            for server in &self.servers {
                if !server.admits(&name, &key).await {
                    return false;
                }
            }
            true
        })
        .await;
        let mut sessions = JoinSet::new();
        for server in &self.servers {
            sessions.spawn(server.session(&name, &key).await.unwrap().end());
        }
        let begin = Instant::now();
        self.store.revoke(&id(&name)).await.unwrap();
        let ended = sessions.join_all().await.into_iter().max().unwrap() - begin;
        for server in &self.servers {
            assert!(!server.admits(&name, &key).await);
        }
        println!("{what}: a new key after {added:.2?}, its revocation after {ended:.2?}");
        assert!(added < Duration::from_secs(1) && ended < Duration::from_secs(1));
    }
}

/// An id with a key of its own.
pub(crate) fn entry(number: usize) -> KeyEntry {
    KeyEntry::new(format!("id-{number}").as_str(), key(number)).unwrap()
}

pub(crate) fn key(number: usize) -> Key {
    Key::new(format!("{number:032}")).unwrap()
}
