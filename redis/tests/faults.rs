//! What Redis and the network do to a fleet: it never opens, known keys go on working, `staleness` says so, and the
//! servers recover by themselves.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_challenge::Key;
use tower_challenge_redis::{Error, Form};

use crate::server::Redis;
use crate::support::{LONG, Server, World, entry, eventually, id, key};

const FORMS: [Form; 2] = [Form::Sealed, Form::Derived];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn killed_and_wiped() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        world.redis.kill();
        world.all_stale().await;
        world.check().await;
        world.redis.start_again().await;
        assert_eq!(world.redis.run::<u64>("DBSIZE").await, 0, "no fault");
        let connected = world.relay.accepted().len();
        sleep(Duration::from_millis(2500)).await;
        assert!(world.relay.accepted().len() > connected, "no attempts");
        assert!(world.servers.iter().all(|server| server.keys.staleness() > Duration::from_secs(3)));
        world.check().await;
        let error = Server::connect(world.builder()).await.err().unwrap();
        assert!(matches!(error, Error::NoMarker), "{error}");
        // Another store with the same secret is not this one.
        world.store.init(form).await.unwrap();
        sleep(Duration::from_millis(1200)).await;
        assert!(world.servers.iter().all(|server| !server.keys.is_connected()));
        world.check().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn killed_and_restored() {
    for form in FORMS {
        let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
        let mut world = World::new(form, redis).await;
        world.redis.kill();
        world.all_stale().await;
        world.check().await;
        world.redis.start_again().await;
        world.check_recovery("killed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn stopped() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        let begin = Instant::now();
        world.redis.stop();
        let is_noticed = async || world.servers.iter().all(|server| !server.keys.is_connected());
        eventually("noticed", is_noticed).await;
        let noticed = begin.elapsed();
        println!("stopped: noticed after {noticed:.2?}");
        assert!(noticed < Duration::from_millis(900), "{noticed:?}");
        world.all_stale().await;
        world.check().await;
        world.redis.resume();
        world.check_recovery("stopped").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn latency() {
    let mut world = World::sealed().await;
    world.relay.set_delay(Duration::from_secs(2));
    world.all_stale().await;
    world.check().await;
    let error = Server::connect(world.builder()).await.err().unwrap();
    assert!(matches!(error, Error::TimedOut), "{error}");
    assert!(world.relay.affected() > 0);
    world.relay.set_delay(Duration::ZERO);
    world.check_recovery("latency").await;
    // A little of it is none.
    world.relay.set_delay(Duration::from_millis(30));
    sleep(Duration::from_secs(1)).await;
    assert!(world.servers.iter().all(|server| server.keys.is_connected()));
    world.check_changes("30 ms").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn one_way_partitions() {
    let mut world = World::sealed().await;
    for replies in [false, true] {
        let affected = world.relay.affected();
        let set = |dropped| {
            if replies { world.relay.drop_replies(dropped) } else { world.relay.drop_requests(dropped) }
        };
        set(true);
        world.all_stale().await;
        assert!(world.relay.affected() > affected, "no fault");
        // Nobody tells the servers.
        let bob = format!("id-{}", u8::from(replies));
        world.store.revoke(&id(&bob)).await.unwrap();
        assert!(world.servers[0].admits(&bob, &key(replies.into())).await);
        set(false);
        world.check().await;
        world.check_recovery("one-way partition").await;
        for server in &world.servers {
            assert!(!server.admits(&bob, &key(replies.into())).await, "revoked meanwhile");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn flushed() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        let before = world.redis.dump().await;
        world.redis.run::<()>("FLUSHALL").await;
        world.all_stale().await;
        world.check().await;
        let is_marker = |name: &[u8]| name.ends_with(b":marker");
        for (name, value) in before.iter().filter(|(name, _)| !name.ends_with(b":servers")) {
            if !is_marker(name) {
                world.redis.send::<()>(&[b"SET", name, value]).await;
            }
        }
        assert!(world.servers.iter().all(|server| !server.keys.is_connected()), "without a marker");
        let (name, value) = before.iter().find(|(name, _)| is_marker(name)).unwrap();
        world.redis.send::<()>(&[b"SET", name, value]).await;
        world.check_recovery("flushed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn failover_to_a_stale_replica() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        let old = world.redis.dump().await;
        let carol = world.store.add(&id("carol")).await.unwrap();
        let bob = if form == Form::Sealed { key(5) } else { world.store.add(&id("id-5")).await.unwrap() };
        world.store.revoke(&id("id-5")).await.unwrap();
        for server in &world.servers {
            eventually("carol", async || server.admits("carol", &carol).await).await;
            eventually("no id-5", async || !server.admits("id-5", &bob).await).await;
        }
        let replica = Redis::start().await;
        for (name, value) in old.into_iter().filter(|(name, _)| !name.ends_with(b":servers")) {
            replica.send::<()>(&[b"SET", &name, &value]).await;
        }
        world.relay.set_target(replica.addr());
        world.redis.kill();
        world.all_fresh().await;
        world.check().await;
        for server in &world.servers {
            assert!(!server.admits("id-5", &bob).await, "un-revoked");
            assert!(server.admits("carol", &carol).await);
        }
        // The fault: a server that starts now believes it.
        let new = Server::connect(world.builder()).await.unwrap();
        assert!(new.admits("id-5", &bob).await, "no fault");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn no_auth() {
    let mut world = World::sealed().await;
    world.redis.run::<()>("CONFIG SET requirepass secret").await;
    world.relay.cut();
    world.all_stale().await;
    world.check().await;
    let error = Server::connect(world.builder()).await.err().unwrap();
    assert!(error.to_string().contains("NOAUTH"), "{error}");
    let client = redis::Client::open(format!("redis://:secret@{}", world.redis.addr())).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("requirepass").arg("").query_async::<()>(&mut admin).await.unwrap();
    world.check_recovery("NOAUTH").await;
}

/// Redis drops what it likes, the marker last or first.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn eviction() {
    let mut world = World::sealed().await;
    let before: u64 = world.redis.run("DBSIZE").await;
    world.redis.run::<()>("CONFIG SET maxmemory-policy allkeys-lru").await;
    world.redis.run::<()>("CONFIG SET maxmemory 1mb").await;
    eventually("evicted", async || world.redis.run::<u64>("DBSIZE").await < before / 2).await;
    sleep(Duration::from_millis(700)).await;
    world.check().await;
    for server in &world.servers {
        for number in (0..900).step_by(100) {
            assert!(server.admits(&format!("id-{number}"), &key(number)).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn values_that_are_not_ours() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        let foreign = World::new(form, Redis::start().await).await;
        let values = world.redis.dump().await;
        let others = foreign.redis.dump().await;
        let value = |of: &[(Vec<u8>, Vec<u8>)], name: &str| {
            of.iter().find(|(found, _)| found.ends_with(name.as_bytes())).map(|(_, value)| value.clone())
        };
        for name in ["key:alice", "revoked:mallory", "key:mallory"] {
            let Some(own) = value(&values, name) else { continue };
            let mut garbled = own.clone();
            *garbled.last_mut().unwrap() ^= 1;
            let newer = {
                let mut newer = own.clone();
                newer[8] = newer[8].wrapping_add(1);
                newer
            };
            let other_id = value(&values, "key:id-1").unwrap_or_default();
            let name = format!("{{tower-challenge}}:{name}").into_bytes();
            for bad in [
                garbled,
                newer,
                own[..own.len() - 1].to_vec(),
                own[..5].to_vec(),
                Vec::new(),
                vec![0xff; 20_000],
                value(&others, "revoked:mallory").unwrap(),
                value(&values, ":marker").unwrap(),
                other_id,
            ] {
                assert_ne!(bad, own);
                world.redis.send::<()>(&[b"SET", &name, &bad]).await;
            }
            sleep(Duration::from_millis(100)).await;
            world.check().await;
            // A server that starts now: whatever it makes of the values, nobody is let in by them.
            let new = Server::connect(world.builder()).await.unwrap();
            assert!(!new.admits("alice", &Key::generate().unwrap()).await);
            world.redis.send::<()>(&[b"LPUSH", b"{tower-challenge}:key:list", b"x"]).await;
            world.redis.send::<()>(&[b"SET", &name, &own]).await;
        }
        assert!(matches!(world.store.list().await, Ok(_) | Err(Error::Unreadable(_))));
        world.check_recovery("values").await;
        // The marker itself.
        let marker = b"{tower-challenge}:marker";
        world.redis.send::<()>(&[b"SET", marker, &value(&others, ":marker").unwrap()]).await;
        world.all_stale().await;
        world.check().await;
        let error = Server::connect(world.builder()).await.err().unwrap();
        assert!(matches!(error, Error::WrongMarker), "{error}");
        world.redis.send::<()>(&[b"SET", marker, &value(&values, ":marker").unwrap()]).await;
        world.check_recovery("marker").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn tracking_is_switched_off() {
    let mut world = World::sealed().await;
    let connections = world.relay.accepted().len();
    world.relay.inject("CLIENT REPLY SKIP\r\nCLIENT TRACKING OFF\r\n");
    let begin = Instant::now();
    eventually("noticed", async || world.relay.accepted().len() >= connections + world.servers.len()).await;
    println!("tracking off: all servers connect again after {:.2?}", begin.elapsed());
    assert!(world.relay.injected() >= world.servers.len());
    world.check_recovery("tracking off").await;
}

/// Changes while servers load: nothing falls in between.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn changes_during_the_load() {
    let mut world = World::sealed().await;
    for round in 0..4 {
        world.relay.set_delay(Duration::from_millis(20));
        world.relay.cut();
        // The load takes some round trips.
        for step in 0..30 {
            let number = round * 30 + step;
            world.store.revoke(&id(&format!("id-{number}"))).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        world.relay.set_delay(Duration::ZERO);
        world.all_fresh().await;
        sleep(Duration::from_millis(300)).await;
        for number in round * 30..(round + 1) * 30 {
            for server in &world.servers {
                assert!(!server.admits(&format!("id-{number}"), &key(number)).await, "{number}");
            }
        }
    }
    world.check_recovery("changes").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn revocation_while_one_server_is_cut_off() {
    for form in FORMS {
        let mut world = World::new(form, Redis::start().await).await;
        let direct = tower_challenge_redis::RedisKeys::builder(world.redis.url(), world.secret());
        let other = Server::connect(direct).await.unwrap();
        let bob = if form == Form::Sealed { key(9) } else { world.store.add(&id("id-9")).await.unwrap() };
        world.relay.refuse(true);
        world.relay.cut();
        world.all_stale().await;
        world.store.revoke(&id("id-9")).await.unwrap();
        eventually("revoked", async || !other.admits("id-9", &bob).await).await;
        for server in &world.servers {
            assert!(server.admits("id-9", &bob).await && server.keys.staleness() > Duration::from_secs(1));
        }
        world.check().await;
        world.relay.refuse(false);
        world.check_recovery("cut off").await;
        for server in &world.servers {
            assert!(!server.admits("id-9", &bob).await);
        }
    }
}

/// Changes that never end do not make a server stale.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn stream_of_changes() {
    let world = World::sealed().await;
    let writer = tokio::spawn({
        let store = tower_challenge_redis::Store::new(&world.redis.url(), world.secret()).unwrap();
        async move {
            for number in (0..998).cycle() {
                store.import(&[entry(number)]).await.unwrap();
            }
        }
    });
    let (begin, mut worst) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < Duration::from_secs(3) {
        worst = world.servers.iter().map(|server| server.keys.staleness()).max().unwrap().max(worst);
        sleep(Duration::from_millis(20)).await;
    }
    println!("stream of changes: staleness at most {worst:.2?}");
    assert!(worst < Duration::from_secs(1) && !writer.is_finished());
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn max_stale_refuses_until_redis_is_back() {
    let mut world = World::sealed().await;
    let server = Server::connect(world.builder().max_stale(Duration::from_secs(1))).await.unwrap();
    let alice = key(1);
    assert!(server.admits("id-1", &alice).await);
    world.redis.stop();
    sleep(Duration::from_millis(1300)).await;
    let refused = server.session("id-1", &alice).await.err().expect("too stale");
    println!("max_stale: {refused}");
    world.check().await;
    world.redis.resume();
    eventually("back", async || server.session("id-1", &alice).await.is_ok()).await;
    assert!(LONG > server.keys.staleness());
}
