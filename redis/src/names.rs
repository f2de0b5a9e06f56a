//! The names of the metrics.

use metrics::{Unit, describe_counter, describe_gauge};

/// Gauge of how long ago everything in the store was known, in seconds.
pub const STALENESS: &str = "challenge_redis_staleness_seconds";
/// Counter of loads of the whole store.
pub const LOADS: &str = "challenge_redis_loads_total";
/// Counter of values that were read and were not what was known, or were known and not found, by outcome.
pub const VALUES: &str = "challenge_redis_values_total";
/// Counter of penalties, by direction: sent or taken.
pub const PENALTIES: &str = "challenge_redis_penalties_total";

/// Describes the metrics to the recorder that is installed.
pub fn describe() {
    describe_gauge!(STALENESS, Unit::Seconds, "How long ago everything in the store was known");
    describe_counter!(LOADS, "Loads of the whole store");
    describe_counter!(VALUES, "Values read: changed, revoked, older, missing or unreadable");
    describe_counter!(PENALTIES, "Penalties sent to other servers, and taken from them");
}
