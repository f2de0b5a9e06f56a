//! A million ids. By hand, in release: `cargo test --release -p tower-challenge-redis --test integration -- --ignored
//! --nocapture million`.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_challenge::{Key, KeyEntry};
use tower_challenge_redis::{Form, RedisKeys, Store, StoreSecret};

use crate::relay::Relay;
use crate::server::Redis;
use crate::support::{Server, entry, eventually, id, key};

const COUNT: usize = 1_000_000;

/// The resident memory of this process, in MiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis and minutes"]
async fn million_ids() {
    let redis = Redis::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let store = Store::new(&redis.url(), StoreSecret::create(&path).unwrap()).unwrap();
    store.init(Form::Sealed).await.unwrap();
    let begin = Instant::now();
    for batch in 0..10 {
        let entries: Vec<KeyEntry> =
            (0..COUNT / 10).map(|number| entry(batch * (COUNT / 10) + number)).collect();
        store.import(&entries).await.unwrap();
    }
    println!("imported in {:.2?}", begin.elapsed());
    for number in 0..1000 {
        store.revoke(&id(&format!("id-{number}"))).await.unwrap();
    }
    let (relay, before, begin) = (Relay::start(redis.addr()).await, memory(), Instant::now());
    let builder = RedisKeys::builder(relay.url(), StoreSecret::read(&path).unwrap());
    let server = Server::connect(builder.state_file(directory.path().join("state"))).await.unwrap();
    let loaded = begin.elapsed();
    println!("loaded in {loaded:.2?}, {} MiB more, {} in all", memory() - before, memory());
    assert!(loaded < Duration::from_secs(30));
    assert!(!server.admits("id-1", &key(1)).await && server.admits("id-1000", &key(1000)).await);

    // Handshakes, and a revocation, during a reload.
    let session = server.session("id-2000", &key(2000)).await.unwrap();
    relay.cut();
    eventually("cut", async || !server.keys.is_connected()).await;
    let revoked = Instant::now();
    store.revoke(&id("id-2000")).await.unwrap();
    let end = tokio::spawn(session.end());
    let (mut times, begin) = (Vec::new(), Instant::now());
    while !server.keys.is_connected() || begin.elapsed() < Duration::from_secs(5) {
        let begin = Instant::now();
        assert!(server.admits("id-3000", &key(3000)).await);
        times.push(begin.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    println!("session of a revoked key ended after {:.2?}", end.await.unwrap() - revoked);
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{} handshakes during a reload: p50 {:.2?}, p99 {:.2?}, worst {:.2?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(at(100) < Duration::from_secs(1));
    println!("memory {} MiB", memory());

    let begin = Instant::now();
    let added = store.add(&id("new")).await.unwrap();
    let after = eventually("new", async || server.admits("new", &added).await).await;
    println!("a new key after {after:.2?}");
    let session = server.session("id-4000", &key(4000)).await.unwrap();
    let revoked = Instant::now();
    store.revoke(&id("id-4000")).await.unwrap();
    let ended = session.end().await - revoked;
    println!("a revocation after {ended:.2?}; both {:.2?}", begin.elapsed());
    assert!(ended < Duration::from_secs(1));
    assert!(!server.admits("nobody", &Key::generate().unwrap()).await);
}
