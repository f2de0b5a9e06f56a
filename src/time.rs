//! The clock: tokio's, which is monotonic. The time of day has no say in anything.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};

/// A moment so far away that it does not matter, for those that can't be expressed.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The moment that is `duration` from `now`.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}

/// Whether the time is up, also when the task has used up its budget: a peer that floods sees to that, and the timer on
/// its own would then say that it is not.
pub(crate) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}
