//! A Redis that goes back to an older state.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tokio::time::sleep;
use tower_challenge_redis::{Error, Form, RedisKeys, Store, StoreSecret};

use crate::metrics::Recorder;
use crate::server::Redis;
use crate::support::{Server, World, eventually, id};

const FORMS: [Form; 2] = [Form::Sealed, Form::Derived];

/// On running servers, and across a restart with a state file.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn nothing_is_un_revoked() {
    for form in FORMS {
        let world = World::new(form, Redis::start().await).await;
        let state_file = world.directory.path().join("state");
        let with_file = || RedisKeys::builder(world.redis.url(), world.secret()).state_file(&state_file);
        let server = Server::connect(with_file()).await.unwrap();
        let mut bob = world.store.add(&id("bob")).await.unwrap();
        if form == Form::Sealed {
            // So that there is an older tombstone.
            world.store.revoke(&id("bob")).await.unwrap();
            bob = world.store.add(&id("bob")).await.unwrap();
        }
        for server in world.servers.iter().chain([&server]) {
            eventually("bob", async || server.admits("bob", &bob).await).await;
        }
        let old = world.redis.dump().await;
        world.store.revoke(&id("bob")).await.unwrap();
        let bob_in_hex = "626f62";
        eventually("saved", async || {
            std::fs::read_to_string(&state_file).is_ok_and(|text| text.contains(bob_in_hex))
                && !server.admits("bob", &bob).await
        })
        .await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(state_file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        // Old values, and a tombstone that is dropped.
        for (name, value) in old.iter().filter(|(name, _)| name.ends_with(b":bob")) {
            world.redis.send::<()>(&[b"SET", name, value]).await;
        }
        for _ in 0..2 {
            sleep(Duration::from_millis(300)).await;
            for server in world.servers.iter().chain([&server]) {
                assert!(server.keys.is_connected() && !server.admits("bob", &bob).await, "un-revoked");
            }
            world.redis.run::<u64>("DEL {tower-challenge}:revoked:bob").await;
        }
        drop(server);
        let restarted = Server::connect(with_file()).await.unwrap();
        assert!(!restarted.admits("bob", &bob).await, "un-revoked by a restart");
        let without = Server::connect(world.builder()).await.unwrap();
        assert!(without.admits("bob", &bob).await, "no fault");
        drop(restarted);

        // A revocation in a store that has gone back counts, too.
        world.store.revoke(&id("bob")).await.unwrap();
        for server in world.servers.iter().chain([&without]) {
            eventually("revoked again", async || !server.admits("bob", &bob).await).await;
        }

        // An empty store, and another one.
        world.redis.run::<()>("FLUSHALL").await;
        let error = Server::connect(with_file()).await.err().unwrap();
        assert!(matches!(error, Error::NoMarker), "{error}");
        world.store.init(form).await.unwrap();
        let error = Server::connect(with_file()).await.err().unwrap();
        assert!(matches!(error, Error::AnotherStore), "{error}");
        std::fs::write(&state_file, "{}").unwrap();
        let error = Server::connect(with_file()).await.err().unwrap();
        assert!(matches!(error, Error::File(..)), "{error}");
    }
}

/// In the metrics: values that are older, gone, or cannot be opened, also if that came with a reconnect or a restart.
#[tokio::test]
#[ignore = "needs Redis"]
async fn rollback_is_noticed() {
    let metrics = Recorder::default();
    let _recording = ::metrics::set_default_local_recorder(&metrics);
    let values = |outcome: &str| metrics.count(&format!("challenge_redis_values_total {outcome}"));
    let world = World::sealed().await;
    let state_file = world.directory.path().join("state");
    let old = world.redis.dump().await;
    let new = world.store.rotate(&id("id-1"), Duration::ZERO).await.unwrap();
    world.store.revoke(&id("id-2")).await.unwrap();
    for server in &world.servers {
        eventually("seen", async || server.admits("id-1", &new).await).await;
    }
    assert_eq!((values("older"), values("missing"), values("unreadable")), (0, 0, 0));
    assert!(values("changed") > 0 && values("revoked") > 0);
    let servers = world.servers.len() as u64;

    // Under the eyes of the servers.
    let (name, value) = old.iter().find(|(name, _)| name.ends_with(b":key:id-1")).unwrap();
    world.redis.send::<()>(&[b"SET", name, value]).await;
    eventually("older", async || values("older") == servers).await;
    world.redis.run::<u64>("DEL {tower-challenge}:revoked:id-2").await;
    eventually("missing", async || values("missing") == servers).await;
    world.redis.run::<()>("SET {tower-challenge}:revoked:id-2 garbled").await;
    eventually("unreadable", async || values("unreadable") == servers).await;

    // While they are away.
    let loads = || metrics.count("challenge_redis_loads_total ");
    assert_eq!(loads(), servers);
    world.relay.refuse(true);
    world.relay.cut();
    eventually("away", async || world.servers.iter().all(|server| !server.keys.is_connected())).await;
    for number in 10..20 {
        world.redis.run::<u64>(&format!("DEL {{tower-challenge}}:key:id-{number}")).await;
    }
    world.redis.run::<u64>("DEL {tower-challenge}:revoked:mallory").await;
    let missing = values("missing");
    world.relay.refuse(false);
    world.all_fresh().await;
    assert_eq!(loads(), 2 * servers);
    assert_eq!(values("missing") - missing, 11 * servers);
    assert_eq!((values("older"), values("unreadable")), (2 * servers, 2 * servers));

    // Across a restart.
    let with_file = || RedisKeys::builder(world.redis.url(), world.secret()).state_file(&state_file);
    drop(Server::connect(with_file()).await.unwrap());
    let missing = values("missing");
    world.redis.run::<u64>("DEL {tower-challenge}:key:id-30").await;
    eventually("missing", async || values("missing") == missing + servers).await;
    let _server = Server::connect(with_file()).await.unwrap();
    assert_eq!(values("missing") - missing, servers + 1);
    assert!(metrics.gauge("challenge_redis_staleness_seconds ") < 1.0);
    world.redis.stop();
    eventually("the gauge", async || metrics.gauge("challenge_redis_staleness_seconds ") > 1.5).await;
    world.redis.resume();
}

/// The keys of the state file are read again, and a key that was rotated out stays out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn rotated_key_stays_out_after_a_restart() {
    let world = World::sealed().await;
    let state_file = world.directory.path().join("state");
    let with_file = || RedisKeys::builder(world.redis.url(), world.secret()).state_file(&state_file);
    let server = Server::connect(with_file()).await.unwrap();
    let old_key = world.store.add(&id("bob")).await.unwrap();
    eventually("bob", async || server.admits("bob", &old_key).await).await;
    let old = world.redis.dump().await;
    let new_key = world.store.rotate(&id("bob"), Duration::ZERO).await.unwrap();
    eventually("rotated", async || {
        server.admits("bob", &new_key).await && !server.admits("bob", &old_key).await
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    drop(server);
    let server = Server::connect(with_file()).await.unwrap();
    assert!(server.admits("bob", &new_key).await && !server.admits("bob", &old_key).await);
    for (name, value) in old.iter().filter(|(name, _)| name.ends_with(b":bob")) {
        world.redis.send::<()>(&[b"SET", name, value]).await;
    }
    sleep(Duration::from_millis(300)).await;
    assert!(server.admits("bob", &new_key).await && !server.admits("bob", &old_key).await);
    drop(server);
    let server = Server::connect(with_file()).await.unwrap();
    assert!(!server.admits("bob", &new_key).await && !server.admits("bob", &old_key).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn first_load_is_of_an_initialized_store_of_this_secret() {
    let redis = Redis::start().await;
    let directory = tempfile::tempdir().unwrap();
    let secret = |name: &str| {
        let path = directory.path().join(name);
        StoreSecret::read(&path).or_else(|_| StoreSecret::create(&path)).unwrap()
    };
    let error = Server::connect(RedisKeys::builder(redis.url(), secret("one"))).await.err().unwrap();
    assert!(matches!(error, Error::NoMarker), "{error}");
    let store = Store::new(&redis.url(), secret("one")).unwrap();
    assert!(matches!(store.add(&id("alice")).await, Err(Error::NoMarker)));
    store.init(Form::Sealed).await.unwrap();
    let error = Server::connect(RedisKeys::builder(redis.url(), secret("two"))).await.err().unwrap();
    assert!(matches!(error, Error::WrongMarker), "{error}");
    assert!(matches!(Store::new(&redis.url(), secret("two")).unwrap().list().await, Err(Error::WrongMarker)));
    // An empty store is a store.
    let server = Server::connect(RedisKeys::builder(redis.url(), secret("one"))).await.unwrap();
    assert!(!server.admits("alice", &crate::support::key(1)).await);
    let key = store.add(&id("alice")).await.unwrap();
    eventually("the first key", async || server.admits("alice", &key).await).await;
    store.revoke(&id("alice")).await.unwrap();
    eventually("none again", async || !server.admits("alice", &key).await).await;
}

/// No key, and nothing of the secret, is in Redis.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn redis_has_no_secret() {
    for form in FORMS {
        let world = World::new(form, Redis::start().await).await;
        let mut hidden = vec![world.store.add(&id("carol")).await.unwrap()];
        if form == Form::Sealed {
            hidden.extend((0..998).map(crate::support::key));
        }
        let secret = std::fs::read_to_string(world.secret_path()).unwrap();
        hidden.push(tower_challenge::Key::from_hex(secret.trim_end().as_bytes()).unwrap());
        eventually("reports", async || world.redis.run::<u64>("HLEN {tower-challenge}:servers").await == 5)
            .await;
        let all: Vec<u8> =
            world.redis.dump().await.into_iter().flat_map(|(name, value)| [name, value].concat()).collect();
        assert!(all.len() > 500);
        let contains = |part: &[u8]| all.windows(part.len()).any(|window| window == part);
        assert!(contains(b"mallory"));
        for key in hidden.iter().step_by(10).chain(hidden.last()) {
            assert!(!contains(&key.expose_secret()[..16]));
            assert!(!contains(&key.expose_secret()[16..]));
            assert!(!contains(key.to_hex().as_bytes()));
        }
    }
}

/// Servers know versions that the store has lost and that are ahead of the clock.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn keys_that_redis_has_lost_are_revoked() {
    let world = World::sealed().await;
    let store = Store::new(&world.redis.url(), world.secret()).unwrap();
    let dave = id("dave");
    store.add(&dave).await.unwrap();
    let mut newest = None;
    for _ in 0..3 {
        newest = Some(store.rotate(&dave, Duration::from_secs(3600)).await.unwrap());
    }
    let newest = newest.unwrap();
    let server = &world.servers[0];
    eventually("the newest key is accepted", async || server.admits("dave", &newest).await).await;
    let deleted: usize = world.redis.run("DEL {tower-challenge}:key:dave").await;
    assert_eq!(deleted, 1, "no fault");
    store.revoke(&dave).await.unwrap();
    eventually("the revocation", async || !server.admits("dave", &newest).await).await;
}
