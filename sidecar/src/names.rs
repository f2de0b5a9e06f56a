//! The metrics of this program. Those of the library are in `tower_challenge::observe`.

use metrics::{Unit, describe_counter, describe_gauge};

/// Gauge of open sessions.
pub(crate) const SESSIONS_OPEN: &str = "challenge_proxy_sessions_open";
/// Counter of sessions that have ended.
pub(crate) const SESSIONS: &str = "challenge_proxy_sessions_total";
/// Counter of bytes.
pub(crate) const BYTES: &str = "challenge_proxy_bytes_total";
/// Counter of reloads of the configuration and of key files.
pub(crate) const RELOADS: &str = "challenge_proxy_reloads_total";

/// Describes the metrics of this program and of the library.
pub(crate) fn describe() {
    tower_challenge::observe::describe();
    tower_challenge_redis::names::describe();
    describe_gauge!(SESSIONS_OPEN, "Open sessions");
    describe_counter!(
        SESSIONS,
        "Sessions that have ended, by their end: completed, failed, idle, revoked or aborted"
    );
    describe_counter!(BYTES, Unit::Bytes, "Data of sessions, by direction: to_target or from_target");
    describe_counter!(RELOADS, "Reloads, by what was read (config or keys) and outcome (ok or error)");
}
