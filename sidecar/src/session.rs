//! One session: two streams, its end, and its log line and metrics.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_challenge::KeyId;
use tracing::info;

use crate::direction::Meter;
use crate::names;
use crate::relay::{End, Meters, Side, relay};
use crate::service::SessionFailed;
use crate::socket::{OverSocket, Peer};

/// The state that all sessions of a service share.
pub(crate) struct Sessions {
    service: String,
    /// Names of the accepted side and of the side to the target, for the log.
    near: &'static str,
    far: &'static str,
    idle_timeout: Option<Duration>,
    open: Gauge,
    to_target: Counter,
    from_target: Counter,
}

impl Sessions {
    pub(crate) fn new(
        service: &str,
        [near, far]: [&'static str; 2],
        idle_timeout: Option<Duration>,
    ) -> Arc<Self> {
        let label = || service.to_owned();
        Arc::new(Self {
            service: label(),
            near,
            far,
            idle_timeout,
            open: gauge!(names::SESSIONS_OPEN, "service" => label()),
            to_target: counter!(names::BYTES, "service" => label(), "direction" => "to_target"),
            from_target: counter!(names::BYTES, "service" => label(), "direction" => "from_target"),
        })
    }
}

/// A session from its beginning to the line about its end.
pub(crate) struct Session {
    shared: Arc<Sessions>,
    /// The address of the peer that connected.
    peer: Peer,
    key_id: Option<KeyId>,
    begin: Instant,
    meters: Meters,
    is_over: bool,
}

impl Session {
    pub(crate) fn begin(shared: &Arc<Sessions>, peer: Peer, key_id: Option<KeyId>) -> Self {
        shared.open.increment(1);
        Self {
            peer,
            key_id,
            begin: Instant::now(),
            meters: Meters {
                up: Meter::new(shared.to_target.clone()),
                down: Meter::new(shared.from_target.clone()),
            },
            shared: Arc::clone(shared),
            is_over: false,
        }
    }

    /// Moves data between the two sides until the end, and then closes or resets them.
    pub(crate) async fn run<N, F>(
        self,
        mut near: N,
        mut far: F,
        revoked: impl Future<Output = ()>,
    ) -> Result<(), SessionFailed>
    where
        N: AsyncRead + AsyncWrite + OverSocket + Unpin,
        F: AsyncRead + AsyncWrite + OverSocket + Unpin,
    {
        // Also if this future is dropped.
        reset_on_drop(&near, true);
        reset_on_drop(&far, true);
        let end = relay(&mut near, &mut far, self.meters.clone(), self.shared.idle_timeout, revoked).await;
        match &end {
            End::Completed => {
                reset_on_drop(&near, false);
                reset_on_drop(&far, false);
            }
            // What arrived before the failure is not lost by the reset, which a socket that is closed with unread data
            // sends as well.
            End::Failed(Side::Near, _) => far.socket().sent().await,
            End::Failed(Side::Far, _) => near.socket().sent().await,
            End::Idle | End::Revoked => {}
        }
        drop((near, far));
        self.end(&end)
    }

    fn end(mut self, end: &End) -> Result<(), SessionFailed> {
        self.is_over = true;
        match end {
            End::Completed => self.log("completed", &"completed"),
            End::Failed(side, error) => {
                let name = if *side == Side::Near { self.shared.near } else { self.shared.far };
                self.log("failed", &format_args!("{name}: {error}"));
            }
            End::Idle => self.log("idle", &"idle for too long"),
            End::Revoked => self.log("revoked", &"the key was revoked"),
        }
        if let End::Completed = end { Ok(()) } else { Err(SessionFailed) }
    }

    /// Ends a session that has moved nothing, with the reason.
    pub(crate) fn fail(mut self, reason: &dyn fmt::Display) -> Result<(), SessionFailed> {
        self.is_over = true;
        self.log("failed", reason);
        Err(SessionFailed)
    }

    fn log(&self, end: &'static str, reason: &dyn fmt::Display) {
        counter!(names::SESSIONS, "service" => self.shared.service.clone(), "end" => end).increment(1);
        info!(
            service = self.shared.service,
            peer = %self.peer,
            user.id = self.key_id.as_ref().map(tracing::field::display),
            to_target = self.meters.up.moved(),
            from_target = self.meters.down.moved(),
            seconds = self.begin.elapsed().as_secs_f64(),
            reason = %reason,
            "session ended"
        );
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.open.decrement(1);
        if !self.is_over {
            let reason = if std::thread::panicking() { "panic" } else { "aborted by the shutdown" };
            self.log("aborted", &reason);
        }
    }
}

/// Sets whether the peer sees an error if the stream is dropped. A stream whose end is authenticated does so by itself.
pub(crate) fn reset_on_drop<S: OverSocket>(stream: &S, reset: bool) {
    if !S::HAS_AUTHENTICATED_END {
        stream.socket().reset_on_drop(reset);
    }
}
