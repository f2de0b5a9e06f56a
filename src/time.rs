//! Helpers for tokio's monotonic clock. The time of day is not used anywhere.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};

/// The longest supported duration. A longer one could overflow `Instant`.
const MAX_DURATION: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Returns `now` plus `duration`, without overflow.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(MAX_DURATION)
}

/// Polls a timer outside of tokio's task budget. A peer that sends without pause exhausts the budget, and the timer
/// would then stay pending although its time has passed.
pub(crate) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}
