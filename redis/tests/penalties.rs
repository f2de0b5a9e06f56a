//! Penalties over Redis.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::sleep;
use tower_challenge::admission::Penalties;
use tower_challenge::{Admission, HandshakeErrorKind};
use tower_challenge_redis::RedisPenalties;

use crate::server::Redis;
use crate::support::eventually;

fn admission() -> Admission {
    let builder = Admission::builder().exempt("192.0.2.0/24".parse().unwrap());
    builder.penalties(Penalties::new().max_sources(1000)).build().unwrap()
}

fn offend(admission: &Admission, ip: &str) {
    let ip: IpAddr = ip.parse().unwrap();
    while let Ok(slot) = admission.admit(Some(ip)) {
        slot.failed(HandshakeErrorKind::Malformed);
    }
}

fn admits(admission: &Admission, ip: &str) -> bool {
    admission.admit(Some(ip.parse().unwrap())).is_ok()
}

async fn subscribed(redis: &Redis, count: u64) {
    eventually("subscribed", async || {
        redis.run::<(String, u64)>("PUBSUB NUMSUB {tower-challenge}:penalties").await.1 == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn shared_by_two_servers_also_after_a_restart() {
    let mut redis = Redis::start().await;
    let (one, two) = (admission(), admission());
    let start = |admission: &Admission| RedisPenalties::new(&redis.url()).unwrap().start(admission.clone());
    let _exchanges = (start(&one), start(&two));
    subscribed(&redis, 2).await;
    offend(&one, "198.51.100.1");
    let after = eventually("shared", async || !admits(&two, "198.51.100.1")).await;
    println!("penalty on the other server after {after:.2?}");
    assert!(after < Duration::from_secs(1));
    offend(&two, "2001:db8::1");
    eventually("shared", async || !admits(&one, "2001:db8::2")).await;
    assert!(admits(&one, "198.51.100.2") && admits(&two, "198.51.100.2"));
    // What was taken is not passed on.
    sleep(Duration::from_millis(500)).await;
    assert!(one.take_throttled().is_empty() && two.take_throttled().is_empty());

    redis.kill();
    offend(&one, "198.51.100.3");
    assert!(!admits(&one, "198.51.100.3") && admits(&two, "198.51.100.3"));
    redis.start_again().await;
    subscribed(&redis, 2).await;
    offend(&one, "198.51.100.4");
    eventually("shared again", async || !admits(&two, "198.51.100.4")).await;
    // A stopped Redis, too.
    redis.stop();
    offend(&one, "198.51.100.5");
    sleep(Duration::from_secs(3)).await;
    redis.resume();
    subscribed(&redis, 2).await;
    offend(&one, "198.51.100.6");
    eventually("shared again", async || !admits(&two, "198.51.100.6")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn hostile_publisher() {
    let redis = Redis::start().await;
    let victim = admission();
    let exchange = RedisPenalties::new(&redis.url()).unwrap().max(Duration::from_secs(2));
    let _exchange = exchange.start(victim.clone());
    subscribed(&redis, 1).await;
    let publish = async |message: &str| {
        redis.send::<u64>(&[b"PUBLISH", b"{tower-challenge}:penalties", message.as_bytes()]).await;
    };
    let many: Vec<_> = (0..1024).map(|n| format!("\"10.0.{}.{}/32\":1e9", n / 250, n % 250)).collect();
    for message in [
        "",
        "{}",
        "[1,2]",
        "\u{0}",
        r#"{"from":"x","throttled":{"192.0.2.1/32":9,"0.0.0.0/0":9,"::/0":9,"198.51.100.0/24":9}}"#,
        r#"{"from":"x","throttled":{"2001:db8::/32":9,"::ffff:192.0.2.9/128":9,"203.0.113.1/32":-1}}"#,
        r#"{"from":"x","throttled":{"203.0.113.2/32":1e999,"203.0.113.3/32":null}}"#,
        &"x".repeat(1_000_000),
    ] {
        publish(message).await;
    }
    publish(r#"{"from":"x","throttled":{"203.0.113.4/32":1e9}}"#).await;
    eventually("taken", async || !admits(&victim, "203.0.113.4")).await;
    for ip in
        ["192.0.2.1", "192.0.2.9", "198.51.100.7", "2001:db8::1", "203.0.113.1", "203.0.113.2", "203.0.113.3"]
    {
        assert!(admits(&victim, ip), "{ip}");
    }
    for _ in 0..3 {
        publish(&format!(r#"{{"from":"x","throttled":{{{}}}}}"#, many.join(","))).await;
    }
    eventually("bounded", async || victim.throttled() == 1000).await;
    // This server's own are apart from those.
    offend(&victim, "198.51.100.8");
    assert!(!admits(&victim, "198.51.100.8"));
    sleep(Duration::from_millis(2200)).await;
    assert!(admits(&victim, "203.0.113.4"), "not for longer than the cap");
    assert_eq!(victim.throttled(), 1, "its own");
}
