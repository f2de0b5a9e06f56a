//! Copies in both directions between two streams, and passes on how each of them ends.
//!
//! An end of one side becomes an end for the other, for each direction on its own. An error never does: the caller then
//! resets the connections, so that neither peer takes what it has received for all there was.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Interval, Sleep, interval, sleep, sleep_until};

use crate::direction::{Direction, Failure, Meter};
use crate::socket::{OverSocket, Socket};

/// How long a peer may take nothing of what the other side had sent before it failed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a half-closed connection is checked.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that was accepted.
    Near,
    /// The one to the target.
    Far,
}

/// Why a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions were closed.
    Completed,
    /// One side failed.
    Failed(Side, io::Error),
    /// Nothing was sent in either direction for too long.
    Idle,
    /// The peer's key was revoked.
    Revoked,
}

/// The bytes of the two directions.
#[derive(Clone)]
pub(crate) struct Meters {
    /// From near to far.
    pub(crate) up: Meter,
    pub(crate) down: Meter,
}

/// Copies until both directions have ended, one has failed, or `revoked` completes.
///
/// After a failure, data that had arrived in the other direction before is still delivered.
pub(crate) async fn relay<N, F>(
    near: &mut N,
    far: &mut F,
    meters: Meters,
    idle_timeout: Option<Duration>,
    revoked: impl Future<Output = ()>,
) -> End
where
    N: AsyncRead + AsyncWrite + OverSocket + Unpin,
    F: AsyncRead + AsyncWrite + OverSocket + Unpin,
{
    let mut idle = IdleTimer::new(idle_timeout, meters.clone());
    let mut up = Direction::new(meters.up.clone());
    let mut down = Direction::new(meters.down.clone());
    let mut revoked = pin!(revoked);
    let mut half_closed = HalfClosed::default();
    let mut is_ups_turn = false;
    let ended = poll_fn(|cx| {
        if revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Revoked);
        }
        // In turn, so that neither uses up the time of the other.
        is_ups_turn = !is_ups_turn;
        for is_up in [is_ups_turn, !is_ups_turn] {
            let polled = match is_up {
                true if !up.is_over() => up.poll(cx, near, far).map_err(End::up),
                false if !down.is_over() => down.poll(cx, far, near).map_err(End::down),
                _ => Poll::Pending,
            };
            if let Poll::Ready(Err(end)) = polled {
                return Poll::Ready(end);
            }
        }
        match (up.is_over(), down.is_over()) {
            (true, true) => return Poll::Ready(End::Completed),
            (false, false) => {}
            (true, false) => {
                if let Poll::Ready(error) = half_closed.poll_error(cx, near.socket()) {
                    return Poll::Ready(End::Failed(Side::Near, error));
                }
            }
            (false, true) => {
                if let Poll::Ready(error) = half_closed.poll_error(cx, far.socket()) {
                    return Poll::Ready(End::Failed(Side::Far, error));
                }
            }
        }
        idle.poll(cx).map(|()| End::Idle)
    })
    .await;
    if let End::Failed(..) = ended {
        // The system reports a failure once: if a write has seen it, a read returns the end.
        up.forbid_end();
        down.forbid_end();
        let mut idle = IdleTimer::new(Some(DRAIN_TIMEOUT), meters);
        // tokio's budget would make a stream with data look like one without.
        unconstrained(poll_fn(|cx| {
            let is_drained = drain(&mut up, cx, near, far) & drain(&mut down, cx, far, near);
            if is_drained { Poll::Ready(()) } else { idle.poll(cx) }
        }))
        .await;
    }
    ended
}

impl End {
    fn up(failure: Failure) -> Self {
        match failure {
            Failure::Source(error) => Self::Failed(Side::Near, error),
            Failure::Destination(error) => Self::Failed(Side::Far, error),
        }
    }

    fn down(failure: Failure) -> Self {
        match failure {
            Failure::Source(error) => Self::Failed(Side::Far, error),
            Failure::Destination(error) => Self::Failed(Side::Near, error),
        }
    }
}

/// Continues a direction as far as data has arrived. Returns whether all of it has been sent.
fn drain<R, W>(direction: &mut Direction, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> bool
where
    R: AsyncRead + OverSocket + Unpin,
    W: AsyncWrite + OverSocket + Unpin,
{
    direction.is_over() || direction.poll(cx, from, to).is_ready() || direction.is_drained()
}

/// Looks for the failure of a side that has closed its direction: nothing is read from it any more, which would tell.
#[derive(Default)]
struct HalfClosed(Option<Interval>);

impl HalfClosed {
    fn poll_error(&mut self, cx: &mut Context<'_>, socket: &Socket) -> Poll<io::Error> {
        let ticks = self.0.get_or_insert_with(|| interval(CHECK_PERIOD));
        loop {
            ready!(ticks.poll_tick(cx));
            if let Some(error) = socket.take_error() {
                return Poll::Ready(error);
            }
        }
    }
}

/// Ends a session without traffic.
struct IdleTimer {
    timeout: Duration,
    // None without a limit.
    timer: Option<Pin<Box<Sleep>>>,
    meters: Meters,
    seen: u64,
    last: Instant,
}

impl IdleTimer {
    fn new(timeout: Option<Duration>, meters: Meters) -> Self {
        let timer = timeout.map(|timeout| Box::pin(sleep(timeout)));
        Self { timeout: timeout.unwrap_or_default(), timer, meters, seen: 0, last: Instant::now() }
    }

    /// Ready if no byte was moved for the time. To be polled after each progress.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        let moved = self.meters.up.moved() + self.meters.down.moved();
        if moved != self.seen {
            (self.seen, self.last) = (moved, Instant::now());
        }
        // The timer is moved only when it fires, and not with each byte.
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.last.elapsed() >= self.timeout {
                return Poll::Ready(());
            }
            timer.set(sleep_until(self.last + self.timeout));
        }
    }
}
