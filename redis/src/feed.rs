//! Follows a store: loads all of it, and then whatever Redis says has changed.
//!
//! Redis tells of changes by client tracking in broadcast mode. It is switched on before the store is loaded, so that
//! nothing falls in between. A Redis that is stopped says nothing at all, so a heartbeat asks it four times a second
//! whether tracking is still on. After any doubt the connection is given up, and everything is loaded again.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use redis::aio::MultiplexedConnection;
use redis::{Client, Value, cmd};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tower_challenge::{Key, KeyId};
use tracing::{debug, error, info, warn};

use crate::commit::{Committer, now};
use crate::connect::connect;
use crate::error::Error;
use crate::layout::{Layout, Name, pattern};
use crate::names;
use crate::pushes::{Pending, Pushes};
use crate::secret::StoreSecret;
use crate::state::{Applied, PARTS, State};
use crate::status::{Report, Status};
use crate::tally::{Outcome, Tally};
use crate::value::{Form, Keys, Marker, Revoked};

/// How often Redis is asked whether it still follows us.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// How long it may take to answer, and to answer anything else while the store is followed.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(300);

/// How long it may take to answer a command while the store is loaded: other servers may be loading it, too.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// A timer that fires so late shows that this process is busy.
const LATE: Duration = Duration::from_millis(50);

/// How often an answer is waited for in a busy process.
const ATTEMPTS: usize = 3;

/// The shortest and the longest pause before another connection. It is random in between, so that the servers of a fleet
/// do not come all at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long a load may take.
const MAX_LOAD: Duration = Duration::from_secs(600);

/// How many values are read at a time.
const BATCH: usize = 1000;

/// How often this server reports what it has seen.
const REPORT: Duration = Duration::from_secs(2);

/// The most ids that are held.
const MAX_IDS: usize = 8_000_000;

pub(crate) struct Feed {
    pub(crate) client: Client,
    pub(crate) layout: Layout,
    pub(crate) secret: Arc<StoreSecret>,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) status: Arc<Status>,
    pub(crate) committer: Arc<Committer>,
    /// The name under which this server reports.
    pub(crate) name: String,
    /// What the store was when it was loaded first.
    pub(crate) marker: Option<Marker>,
}

/// Shows how stale the keys are, whatever the feed waits for.
async fn show_staleness(status: &Status) -> Infallible {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        gauge!(names::STALENESS).set(status.staleness().as_secs_f64());
    }
}

impl Feed {
    /// Follows the store until it is dropped. Reports when it was loaded first; an error until then is the end.
    pub(crate) async fn run(self, loaded: oneshot::Sender<Result<Form, Error>>) {
        let (committer, status) = (Arc::clone(&self.committer), Arc::clone(&self.status));
        tokio::select! {
            () = self.keep_following(loaded) => {}
            never = committer.run() => match never {},
            never = show_staleness(&status) => match never {},
        }
    }

    async fn keep_following(mut self, loaded: oneshot::Sender<Result<Form, Error>>) {
        let mut loaded = Some(loaded);
        let mut last = String::new();
        loop {
            let begin = Instant::now();
            let Err(error) = self.follow(&mut loaded).await;
            if let Some(loaded) = loaded.take() {
                // Whoever waited may have given up.
                let _ = loaded.send(Err(error));
                return;
            }
            // Not the same line for each attempt.
            let text = error.to_string();
            if text == last && !self.status.is_connected() {
                debug!(%error, "store not followed");
            } else {
                warn!(%error, "store not followed; the keys that are known stay in use");
                last = text;
            }
            // An attempt that took long has spread the servers already.
            let waited = if self.status.is_connected() { Duration::ZERO } else { begin.elapsed() };
            self.status.set_connected(false);
            self.pause(random_pause().saturating_sub(waited).max(PAUSE.0)).await;
        }
    }

    /// Waits, and shows how stale the keys are.
    async fn pause(&self, time: Duration) {
        gauge!(names::STALENESS).set(self.status.staleness().as_secs_f64());
        sleep(time).await;
    }

    /// Loads the store and follows it, until there is an error.
    async fn follow(
        &mut self,
        loaded: &mut Option<oneshot::Sender<Result<Form, Error>>>,
    ) -> Result<Infallible, Error> {
        let pushes = Arc::new(Pushes::default());
        let (sender, layout) = (Arc::clone(&pushes), self.layout.clone());
        let mut redis = connect(&self.client, move |push| sender.push(&layout, &push)).await?;
        let mut track = cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in [self.layout.keys_prefix(), self.layout.revoked_prefix()] {
            track.arg("PREFIX").arg(prefix);
        }
        track.arg("PREFIX").arg(self.layout.marker());
        answered(LOAD_TIMEOUT, track.query_async::<()>(&mut redis)).await?;
        // A hostile Redis could answer forever.
        let load = self.load(&mut redis, &pushes);
        tokio::time::timeout(MAX_LOAD, load).await.map_err(|_| Error::TimedOut)??;
        if loaded.is_some() {
            // Before a server begins, its keys are there.
            self.committer.commit().await?;
        } else {
            self.committer.request();
        }
        if let Some(loaded) = loaded.take() {
            let form = self.marker.as_ref().map(|marker| marker.form);
            let _ = loaded.send(form.ok_or(Error::NoMarker));
        }
        self.status.set_connected(true);
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut reload = false;
            tokio::select! {
                () = pushes.wait() => reload = self.catch_up(&mut redis, &pushes, HEARTBEAT_TIMEOUT).await?,
                _ = heartbeat.tick() => {
                    let asked = Instant::now();
                    self.check_tracking(&mut redis).await?;
                    // What changed before the question was pushed before the answer.
                    reload = self.catch_up(&mut redis, &pushes, HEARTBEAT_TIMEOUT).await?;
                    if !reload {
                        self.status.seen(asked);
                    }
                    gauge!(names::STALENESS).set(self.status.staleness().as_secs_f64());
                }
                _ = report.tick() => self.report(&mut redis).await?,
            }
            if reload {
                self.load(&mut redis, &pushes).await?;
                self.committer.request();
            }
        }
    }

    /// Reads what has changed. Returns whether everything must be read again.
    async fn catch_up(
        &mut self,
        redis: &mut MultiplexedConnection,
        pushes: &Pushes,
        limit: Duration,
    ) -> Result<bool, Error> {
        let Pending { dirty, reload, disconnected } = pushes.take();
        if disconnected {
            return Err(Error::Redis((redis::ErrorKind::Io, "the connection was closed").into()));
        }
        if !dirty.is_empty() && !reload {
            let names: Vec<_> = dirty.into_iter().collect();
            let mut tally = Tally::default();
            let fetched =
                self.fetch(redis, &names, limit, &mut |outcome, id| tally.add_logged(outcome, id)).await;
            // Also if only some of them were read.
            tally.finish(true);
            self.committer.request();
            fetched?;
        }
        Ok(reload)
    }

    /// Reads the whole store, revocations first. What changes meanwhile is read in between.
    async fn load(&mut self, redis: &mut MultiplexedConnection, pushes: &Pushes) -> Result<(), Error> {
        while !self.load_once(redis, pushes).await? {}
        Ok(())
    }

    /// Returns whether nothing has made this useless meanwhile.
    async fn load_once(&mut self, redis: &mut MultiplexedConnection, pushes: &Pushes) -> Result<bool, Error> {
        let begin = Instant::now();
        self.check_marker(redis, LOAD_TIMEOUT).await?;
        self.state().begin_load();
        let form = self.marker.as_ref().map(|marker| marker.form);
        let mut prefixes = vec![self.layout.revoked_prefix()];
        if form == Some(Form::Sealed) {
            prefixes.push(self.layout.keys_prefix());
        }
        let mut tally = Tally::default();
        for prefix in prefixes {
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern(&prefix)).arg("COUNT").arg(BATCH);
                let (next, found): (u64, Vec<Vec<u8>>) =
                    answered(LOAD_TIMEOUT, scan.query_async(redis)).await?;
                let names: Vec<_> = found.iter().filter_map(|name| self.layout.parse(name)).collect();
                self.fetch(redis, &names, LOAD_TIMEOUT, &mut |outcome, id| tally.add(outcome, 1, id)).await?;
                if self.state().len() > MAX_IDS {
                    return Err(Error::TooManyIds(MAX_IDS));
                }
                if self.catch_up(redis, pushes, LOAD_TIMEOUT).await? {
                    return Ok(false);
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        // What is not there any more is not in the answers.
        for part in 0..PARTS {
            let (count, example) = self.state().lost(part);
            if let Some(id) = example {
                tally.add(Outcome::Missing, count, &id);
            }
            yield_now().await;
        }
        tally.finish(false);
        self.status.seen(begin);
        counter!(names::LOADS).increment(1);
        info!(ids = self.state().len(), seconds = begin.elapsed().as_secs_f64(), "store loaded");
        Ok(true)
    }

    /// Checks that the store is the one that was loaded first.
    async fn check_marker(
        &mut self,
        redis: &mut MultiplexedConnection,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut get = cmd("GET");
        let value: Option<Vec<u8>> =
            answered(limit, get.arg(self.layout.marker()).query_async(redis)).await?;
        let marker = Marker::open(&self.secret, &value.ok_or(Error::NoMarker)?)?;
        match &self.marker {
            Some(first) if *first != marker => return Err(Error::AnotherStore),
            Some(_) => {}
            None => {
                self.committer.restore(&marker.store)?;
                self.marker = Some(marker);
            }
        }
        Ok(())
    }

    /// Reads values, and applies them to the state.
    async fn fetch(
        &mut self,
        redis: &mut MultiplexedConnection,
        names: &[Name],
        limit: Duration,
        outcome: &mut (impl FnMut(Outcome, &KeyId) + Send),
    ) -> Result<(), Error> {
        if names.contains(&Name::Marker) {
            self.check_marker(redis, limit).await?;
        }
        for names in names.chunks(BATCH) {
            let mut get = cmd("MGET");
            for name in names {
                get.arg(self.layout.of(name));
            }
            let values: Vec<Option<Vec<u8>>> = answered(limit, get.query_async(redis)).await?;
            names.iter().zip(values).for_each(|(name, value)| self.apply(name, value.as_deref(), outcome));
        }
        Ok(())
    }

    fn apply(&self, name: &Name, value: Option<&[u8]>, outcome: &mut impl FnMut(Outcome, &KeyId)) {
        let (Some(marker), Name::Keys(id) | Name::Revoked(id)) = (&self.marker, name) else { return };
        // Deleted, evicted or flushed: nothing that is revoked comes back, and nothing that is known goes.
        let Some(value) = value else { return outcome(Outcome::Missing, id) };
        let is_revocation = matches!(name, Name::Revoked(_));
        let applied = if is_revocation {
            let opened = Revoked::open(&self.secret, marker, id, value);
            let mut state = self.state();
            if opened.is_none() {
                state.doubt(id, marker.form);
            }
            let applied = opened.map(|revoked| state.apply_revoked(id, revoked));
            if applied == Some(Applied::Changed) && state.has_keys(id) {
                error!(%id, "the revocation is older than the keys: they stay in use; revoke the id again");
            }
            applied
        } else {
            let opened = Keys::open(&self.secret, marker, id, value);
            let mut state = self.state();
            if opened.is_none() {
                state.found_unreadable_keys(id);
            }
            opened.map(|keys| state.apply_keys(id, keys))
        };
        match applied {
            Some(Applied::Known) => {}
            Some(Applied::Changed) if is_revocation => outcome(Outcome::Revoked, id),
            Some(Applied::Changed) => outcome(Outcome::Changed, id),
            Some(Applied::Older) => outcome(Outcome::Older, id),
            None => outcome(Outcome::Unreadable, id),
        }
    }

    /// Asks Redis whether it still tells of changes.
    async fn check_tracking(&self, redis: &mut MultiplexedConnection) -> Result<(), Error> {
        let mut ask = cmd("CLIENT");
        let info: Value = answered(HEARTBEAT_TIMEOUT, ask.arg("TRACKINGINFO").query_async(redis)).await?;
        let has = |flag: &str| contains(&info, flag);
        if has("on") && has("bcast") {
            return Ok(());
        }
        Err(Error::Redis((redis::ErrorKind::Client, "client tracking was switched off").into()))
    }

    /// Says what this server has seen, for `challenge-keys status`. Without the right to write, nothing is said.
    async fn report(&self, redis: &mut MultiplexedConnection) -> Result<(), Error> {
        let counts = self.state().counts();
        let report = Report { at: now(), counts, staleness: self.status.staleness().as_secs_f64() };
        let Ok(report) = serde_json::to_string(&report) else { return Ok(()) };
        let mut set = cmd("HSET");
        set.arg(self.layout.servers()).arg(&self.name).arg(report);
        match answered(HEARTBEAT_TIMEOUT, set.query_async(redis)).await {
            // Refused.
            Err(Error::Redis(error)) if !error.is_unrecoverable_error() => debug!(%error, "not reported"),
            other => other?,
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for an answer. If this process was too busy to look at the clock in time, it waits again: that says nothing about
/// Redis, and to load a large store again would make it busier still.
async fn answered<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, redis::RedisError>>,
) -> Result<T, Error> {
    let mut answer = pin!(answer);
    for _ in 0..ATTEMPTS {
        let end = Instant::now() + limit;
        match timeout_at(end, &mut answer).await {
            Ok(answered) => return Ok(answered?),
            Err(_) if end.elapsed() > LATE => {}
            Err(_) => break,
        }
    }
    Err(Error::TimedOut)
}

/// Returns whether a reply contains this text, at any depth.
fn contains(value: &Value, text: &str) -> bool {
    match value {
        Value::BulkString(bytes) => bytes == text.as_bytes(),
        Value::SimpleString(string) => string == text,
        Value::Array(values) | Value::Set(values) => values.iter().any(|value| contains(value, text)),
        Value::Map(pairs) => pairs.iter().any(|(_, value)| contains(value, text)),
        _ => false,
    }
}

/// Returns a pause before another connection.
pub(crate) fn random_pause() -> Duration {
    let (min, max) = PAUSE;
    let random = Key::generate().map_or(0, |key| key.expose_secret()[0]);
    min + max.saturating_sub(min) * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn answer_that_a_busy_process_overlooks_is_not_late() {
        let limit = Duration::from_millis(50);
        let busy = async {
            thread::sleep(limit + 2 * LATE);
            for _ in 0..5 {
                yield_now().await;
            }
            Ok(7)
        };
        assert_eq!(answered(limit, busy).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer() {
        let begin = Instant::now();
        let answer = answered::<()>(HEARTBEAT_TIMEOUT, std::future::pending()).await;
        assert!(matches!(answer, Err(Error::TimedOut)));
        assert!(begin.elapsed() < 2 * HEARTBEAT_TIMEOUT);
    }

    #[test]
    fn pauses_are_spread() {
        let mut pauses: Vec<_> = (0..1000).map(|_| random_pause()).collect();
        pauses.sort_unstable();
        assert!(pauses[0] >= PAUSE.0 && pauses[999] <= PAUSE.1);
        assert!(pauses[100] < Duration::from_millis(250) && pauses[900] > Duration::from_millis(750));
    }
}
