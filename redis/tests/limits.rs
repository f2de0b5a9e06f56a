//! No handshake waits for Redis, and many feeds do not come at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower_challenge_redis::RedisKeys;

use crate::server::Redis;
use crate::support::{Server, World, key};

/// Times of handshakes under load, sorted.
async fn measure(servers: &[Server], time: Duration) -> Vec<Duration> {
    let ended = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for (number, server) in servers.iter().cloned().enumerate() {
        let ended = Arc::clone(&ended);
        tasks.spawn(async move {
            let (name, key) = (format!("id-{number}"), key(number));
            let mut times = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let begin = Instant::now();
                assert!(server.session(&name, &key).await.is_ok());
                times.push(begin.elapsed());
            }
            times
        });
    }
    sleep(time).await;
    ended.store(true, Ordering::Relaxed);
    let mut times = tasks.join_all().await.concat();
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn handshakes_do_not_wait_for_redis() {
    const PERCENTS: [usize; 2] = [50, 99];

    let world = World::sealed().await;
    measure(&world.servers, Duration::from_millis(300)).await;
    // The best of some rounds in turn, since the machine may have other work.
    let (mut running, mut stopped) = ([Duration::MAX; 2], [Duration::MAX; 2]);
    let take = |best: &mut [Duration; 2], times: &[Duration]| {
        for (best, percent) in best.iter_mut().zip(PERCENTS) {
            *best = times[times.len() * percent / 100].min(*best);
        }
    };
    for _ in 0..3 {
        take(&mut running, &measure(&world.servers, Duration::from_secs(1)).await);
        world.redis.stop();
        let times = measure(&world.servers, Duration::from_millis(1500)).await;
        let is_stale = |server: &Server| server.keys.staleness() > Duration::from_secs(1);
        assert!(world.servers.iter().all(is_stale), "no fault");
        world.redis.resume();
        world.all_fresh().await;
        // Nothing that waits for Redis is that fast.
        assert!(*times.last().unwrap() < Duration::from_millis(300), "{:?}", times.last());
        take(&mut stopped, &times);
    }
    for ((percent, running), stopped) in PERCENTS.into_iter().zip(running).zip(stopped) {
        let ratio = stopped.as_secs_f64() / running.as_secs_f64();
        println!(
            "p{percent} of handshakes: {running:.2?}, with Redis stopped {stopped:.2?}, ratio {ratio:.2}"
        );
        assert!(ratio < 3.0, "p{percent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn reconnect_storm_is_spread() {
    const FEEDS: usize = 200;

    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let mut world = World::new(tower_challenge_redis::Form::Derived, redis).await;
    let mut feeds = Vec::new();
    for _ in 0..FEEDS {
        feeds.push(Server::connect(RedisKeys::builder(world.relay.url(), world.secret())).await.unwrap());
    }
    let known = world.relay.accepted().len();
    let begin = Instant::now();
    world.relay.cut();
    while feeds.iter().any(|feed| !feed.keys.is_connected()) || world.relay.accepted().len() < known + FEEDS {
        assert!(begin.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(10)).await;
    }
    let mut tenths = [0; 12];
    for at in &world.relay.accepted()[known..] {
        let tenth = usize::try_from((*at - begin).as_millis() / 100).unwrap();
        tenths[tenth.min(11)] += 1;
    }
    println!("200 feeds came back within {:.2?}, in each tenth of a second: {tenths:?}", begin.elapsed());
    assert!(tenths.iter().all(|count| *count <= FEEDS / 4), "{tenths:?}");
    world.check().await;
}
