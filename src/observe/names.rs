//! The names of the metrics, for the settings of an exporter, e.g. the buckets of the histogram.

/// Counter of handshakes that have ended.
pub const HANDSHAKES: &str = "challenge_handshakes_total";
/// Histogram of the duration of handshakes, in seconds.
pub const HANDSHAKE_DURATION: &str = "challenge_handshake_duration_seconds";
/// Gauge of handshakes in flight.
pub const HANDSHAKES_PENDING: &str = "challenge_handshakes_pending";
/// Counter of connections that were not admitted.
pub const NOT_ADMITTED: &str = "challenge_not_admitted_total";
/// Counter of connections that an accept loop has accepted.
pub const CONNECTIONS_ACCEPTED: &str = "challenge_connections_accepted_total";
/// Gauge of open connections of an accept loop.
pub const CONNECTIONS_OPEN: &str = "challenge_connections_open";
/// Counter of connections that could not be accepted.
pub const ACCEPT_ERRORS: &str = "challenge_accept_errors_total";
/// Counter of errors that the `on_error` callback of an accept loop did not receive.
pub const ERRORS_DROPPED: &str = "challenge_errors_dropped_total";
/// Counter of panics of the `on_error` callback of an accept loop.
pub const CALLBACK_PANICS: &str = "challenge_callback_panics_total";
/// Counter of connections on which the service panicked.
pub const PANICS: &str = "challenge_panics_total";
