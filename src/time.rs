//! The clock: tokio's, which is monotonic. The time of day has no say in anything.

use std::time::Duration;

use tokio::time::Instant;

/// A moment so far away that it does not matter, for those that can't be expressed.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The moment that is `duration` from `now`.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}
