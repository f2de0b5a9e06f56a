use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use metrics::counter;
use redis::{Client, PushInfo, PushKind, Value, cmd};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower_challenge::{Admission, Key};
use tracing::debug;

use crate::connect::{client, connect};
use crate::error::Error;
use crate::feed::random_pause;
use crate::layout::{DEFAULT_PREFIX, Layout};
use crate::names;

/// How often penalties are sent.
const PERIOD: Duration = Duration::from_millis(200);

/// The most penalties of a message.
const MAX_OF_MESSAGE: usize = 1024;

/// The longest message that is parsed, in bytes.
const MAX_MESSAGE_LEN: usize = 128 * 1024;

/// How often Redis is asked whether it is still there: with nothing to send, a lost connection is not noticed otherwise.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Shares penalties among the servers of a fleet: what one of them has throttled, the others do, too.
///
/// The messages are not authenticated, and Redis is not trusted: an exempt prefix is never throttled, nothing is
/// throttled for longer than [`max`](Self::max) or [`Penalties::max`](tower_challenge::admission::Penalties::max), only
/// single sources are (an IPv4 address or an IPv6 /64, unless the admission has other lengths), and not more of them than
/// [`Penalties::max_sources`](tower_challenge::admission::Penalties::max_sources), apart from this server's own.
///
/// Without Redis, each server goes on alone. The exchange ends when this is dropped.
///
/// ```no_run
/// use tower_challenge::Admission;
/// use tower_challenge::admission::Penalties;
/// use tower_challenge_redis::RedisPenalties;
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let admission =
///     Admission::builder().penalties(Penalties::new()).build()?;
/// let exchange =
///     RedisPenalties::new("redis://redis.internal")?.start(admission);
/// # drop(exchange);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct RedisPenalties {
    client: Client,
    layout: Layout,
    max: Duration,
}

/// A running exchange of [`RedisPenalties`].
pub struct PenaltyExchange {
    _task: AbortOnDropHandle<()>,
}

/// What is sent.
#[derive(Serialize, Deserialize)]
struct Message {
    /// Who sent it, so that a server skips its own.
    from: String,
    /// The sources, and for how many seconds they are throttled.
    throttled: BTreeMap<IpNet, f64>,
}

impl RedisPenalties {
    /// Prepares an exchange over the Redis at `url`. Nothing is connected.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is invalid.
    pub fn new(url: &str) -> Result<Self, Error> {
        let max = Duration::from_secs(60);
        Ok(Self { client: client(url)?, layout: Layout::new(DEFAULT_PREFIX), max })
    }

    /// Sets the prefix of the channel in Redis. Default: `{tower-challenge}`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.layout = Layout::new(prefix);
        self
    }

    /// Sets for how long another server's report throttles a source at most. Default: 60 seconds.
    pub fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Begins the exchange, in a task of the current runtime.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    #[must_use = "the exchange ends when this is dropped"]
    pub fn start(self, admission: Admission) -> PenaltyExchange {
        PenaltyExchange { _task: AbortOnDropHandle::new(tokio::spawn(self.run(admission))) }
    }

    async fn run(self, admission: Admission) {
        loop {
            if let Err(error) = self.exchange(&admission).await {
                debug!(%error, "penalties not exchanged");
            }
            sleep(random_pause()).await;
        }
    }

    async fn exchange(&self, admission: &Admission) -> Result<(), Error> {
        let name = base16ct::lower::encode_string(&Key::generate()?.expose_secret()[..8]);
        let closed = CancellationToken::new();
        let (taken_by, own, max, on_close) = (admission.clone(), name.clone(), self.max, closed.clone());
        let push = move |push: PushInfo| match push.kind {
            PushKind::Message => {
                if let [Value::BulkString(_), Value::BulkString(message)] = &push.data[..] {
                    take(&taken_by, message, &own, max);
                }
            }
            PushKind::Disconnection => on_close.cancel(),
            _ => {}
        };
        let channel = self.layout.penalties();
        let mut redis = connect(&self.client, push).await?;
        cmd("SUBSCRIBE").arg(&channel).query_async::<()>(&mut redis).await?;
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = closed.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
                _ = heartbeat.tick() => {
                    cmd("PING").query_async::<()>(&mut redis).await?;
                    continue;
                }
            }
            let throttled: BTreeMap<_, _> = admission
                .take_throttled()
                .into_iter()
                .map(|throttled| (throttled.source, throttled.remaining.as_secs_f64()))
                .collect();
            if throttled.is_empty() {
                continue;
            }
            let count = throttled.len() as u64;
            let message = Message { from: name.clone(), throttled };
            let message =
                serde_json::to_string(&message).unwrap_or_else(|_| unreachable!("strings and numbers"));
            cmd("PUBLISH").arg(&channel).arg(message).query_async::<()>(&mut redis).await?;
            counter!(names::PENALTIES, "direction" => "sent").increment(count);
        }
    }
}

/// Throttles what another server has throttled.
fn take(admission: &Admission, message: &[u8], own: &str, max: Duration) {
    if message.len() > MAX_MESSAGE_LEN {
        return;
    }
    let Ok(Message { from, throttled }) = serde_json::from_slice(message) else { return };
    if from == own {
        return;
    }
    let taken = throttled.into_iter().take(MAX_OF_MESSAGE).filter(|(source, seconds)| {
        let remaining = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
        !remaining.is_zero() && admission.throttle(*source, remaining.min(max))
    });
    counter!(names::PENALTIES, "direction" => "taken").increment(taken.count() as u64);
}

impl fmt::Debug for PenaltyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PenaltyExchange").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tower_challenge::admission::Penalties;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hostile_messages_throttle_little() {
        let admission = Admission::builder()
            .exempt("192.0.2.0/24".parse().unwrap())
            .penalties(Penalties::new().max_sources(100));
        let admission = admission.build().unwrap();
        let max = Duration::from_secs(60);
        for message in [
            &b""[..],
            b"{",
            b"[]",
            br#"{"from":"x","throttled":{"192.0.2.1/32":10,"0.0.0.0/0":10,"10.0.0.0/8":10,"::/0":10}}"#,
            br#"{"from":"x","throttled":{"10.0.0.1/32":-1,"10.0.0.2/32":0,"10.0.0.3/32":1e999}}"#,
            br#"{"from":"own","throttled":{"10.0.0.1/32":10}}"#,
        ] {
            take(&admission, message, "own", max);
            assert_eq!(admission.throttled(), 0, "{}", String::from_utf8_lossy(message));
        }
        take(&admission, br#"{"from":"x","throttled":{"10.0.0.1/32":1e9,"2001:db8::/64":5}}"#, "own", max);
        assert_eq!(admission.throttled(), 2);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(admission.throttled(), 0, "not for longer than the maximum");
        let many: BTreeMap<String, f64> =
            (0..2000).map(|n| (format!("10.1.{}.{}/32", n / 250, n % 250), 9.0)).collect();
        let message = serde_json::json!({"from": "x", "throttled": many}).to_string();
        take(&admission, message.as_bytes(), "own", max);
        assert_eq!(admission.throttled(), 100);
    }
}
