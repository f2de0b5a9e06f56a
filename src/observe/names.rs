//! What the metrics are called, for an exporter's settings: the buckets of the histogram, say.

/// Handshakes that are over.
pub const HANDSHAKES: &str = "challenge_handshakes_total";
/// How long a handshake took, in seconds.
pub const HANDSHAKE_DURATION: &str = "challenge_handshake_duration_seconds";
/// Handshakes that are pending now.
pub const HANDSHAKES_PENDING: &str = "challenge_handshakes_pending";
/// Peers that were not admitted.
pub const NOT_ADMITTED: &str = "challenge_not_admitted_total";
/// Connections that an accept loop has accepted.
pub const CONNECTIONS_ACCEPTED: &str = "challenge_connections_accepted_total";
/// Connections of an accept loop that are there now.
pub const CONNECTIONS_OPEN: &str = "challenge_connections_open";
/// Connections that could not be accepted.
pub const ACCEPT_ERRORS: &str = "challenge_accept_errors_total";
/// Connections on which the service panicked.
pub const PANICS: &str = "challenge_panics_total";
