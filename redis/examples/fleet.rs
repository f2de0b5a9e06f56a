//! A server of a fleet: its keys, revocations and penalties come from Redis. It sends back what it receives.
//!
//! ```text
//! redis-server --port 6379 --save '' --maxmemory-policy noeviction &
//! export CHALLENGE_REDIS=redis://127.0.0.1
//! challenge-keys init
//! (umask 077; challenge-keys add alice > alice.keys)
//!
//! cargo run -p tower-challenge-redis --example fleet -- 127.0.0.1:9000 &
//! cargo run -p tower-challenge-redis --example fleet -- 127.0.0.1:9001 &
//!
//! cargo run --example client --features noise -- --mechanism noise \
//!     --audience fleet --key-file alice.keys --connect 127.0.0.1:9000
//! # In another terminal: the session ends on the server within a second.
//! challenge-keys revoke alice
//! ```

use std::env;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::ctrl_c;
use tokio::time::interval;
use tower::ServiceBuilder;
use tower_challenge::admission::Penalties;
use tower_challenge::noise::{self, Audience, NoiseStream};
use tower_challenge::{Admission, Authenticated, BoxError, ChallengeLayer, Connection, serve};
use tower_challenge_redis::{RedisKeys, RedisPenalties, StoreSecret};

type Stream = Authenticated<NoiseStream<Connection<TcpStream>>, noise::Peer>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listen = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    let url = env::var("CHALLENGE_REDIS").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let secret = env::var("CHALLENGE_SECRET").unwrap_or_else(|_| "key-encryption-key".to_owned());

    let keys = RedisKeys::builder(&url, StoreSecret::read(secret)?).name(&listen).connect().await?;
    let admission = Admission::builder().penalties(Penalties::new()).build()?;
    let _exchange = RedisPenalties::new(&url)?.start(admission.clone());
    tokio::spawn(watch(keys.clone()));

    let challenge = ChallengeLayer::new(noise::Server::new(keys, Audience::new("fleet")?))
        .admission(admission)
        .end_revoked_sessions(Duration::ZERO);
    let service = ServiceBuilder::new().layer(challenge).service_fn(echo);
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, service)
        .graceful_shutdown(async { ctrl_c().await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(1))
        .on_error(|error| println!("{error}"))
        .await?;
    Ok(())
}

async fn echo(stream: Stream) -> std::io::Result<()> {
    println!("accepted: key {}", stream.peer().identity().key_id());
    let (mut read, mut write) = split(stream);
    copy(&mut read, &mut write).await?;
    // Only this tells the client that nothing is missing.
    write.shutdown().await
}

/// Prints when the store is lost and found again.
async fn watch(keys: RedisKeys<noise::PreparedKey>) {
    let mut ticks = interval(Duration::from_millis(500));
    let mut was_stale = false;
    loop {
        ticks.tick().await;
        let staleness = keys.staleness();
        let is_stale = staleness > Duration::from_secs(1);
        if is_stale != was_stale {
            println!("keys {}: seen {staleness:.1?} ago", if is_stale { "stale" } else { "fresh" });
            was_stale = is_stale;
        }
    }
}
