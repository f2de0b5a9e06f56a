//! Observability: spans and log events through `tracing`, metrics through `metrics`.
//!
//! Each is a cargo feature of the same name, off by default. When disabled, they compile to nothing: no field, no
//! branch, no memory. When enabled, but without a subscriber or recorder, a handshake costs some atomic operations and
//! a lock, and two small allocations for labels with `metrics`. Handshakes of both sides are instrumented.
//!
//! Both need a consumer that the program installs, e.g. `tracing-subscriber` and `metrics-exporter-prometheus`:
//!
//! ```text
//! cargo run -p example-observe
//! ```
//!
//! # The span of a connection
//!
//! Its name is `connection`, its target `tower_challenge`, its level `INFO`. It begins with the handshake, in
//! [`Acceptor::accept`](crate::Acceptor::accept) or [`accept_admitted`](crate::Acceptor::accept_admitted), as a child
//! of the current span. Connections that are not admitted have no span. On the client's side it begins in
//! [`Connector::connect`](crate::Connector::connect) and ends with the handshake.
//!
//! With a [`ChallengeLayer`](crate::ChallengeLayer) the span lasts until the inner service has responded, so **events
//! of the inner service are inside the span of their connection**, even if its future is dropped early. With an
//! [`Acceptor`](crate::Acceptor) alone, and with `Incoming`, the span ends with the handshake.
//!
//! | field | value | set | convention |
//! |---|---|---|---|
//! | `network.peer.address` | the peer's IP address, if known | at the beginning | OpenTelemetry, [network] (stable) |
//! | `network.peer.port` | the peer's port, if known | at the beginning | OpenTelemetry, [network] (stable) |
//! | `network.type` | `ipv4` or `ipv6` | at the beginning | OpenTelemetry, [network] (stable) |
//! | `challenge.role` | `server` or `client`: this side | at the beginning | own |
//! | `challenge.mechanism` | [`Mechanism::NAME`] | at the beginning | own |
//! | `challenge.outcome` | `success`, the error kind, or `abandoned` | after the handshake | own |
//! | `challenge.handshake.duration` | seconds since the call of `accept` | after the handshake | own; the unit is OpenTelemetry's |
//! | `user.id` | the id of the key that the peer has proven to hold | after success | OpenTelemetry, [user] (development) |
//! | `error.type` | the error kind | after failure | OpenTelemetry, [error] (stable) |
//!
//! The error kinds are those of [`HandshakeErrorKind`] in `snake_case`: `refused`, `timed_out`, `unexpected_eof`,
//! `probe`, `malformed`, `io`, `server_not_authenticated`, `channel_binding`, `random`, `key_source`, `revoked`, `shutting_down`,
//! `source_limit`, `overloaded`, `evicted`, `throttled`. A handshake is `abandoned` if its future is dropped before it
//! completes, e.g. by a timeout around it. The address fields are updated if a step before the handshake, such as a
//! PROXY protocol header, reports another address. IPv4-mapped IPv6 addresses are shown as IPv4, as in [admission
//! control](crate::admission). There is no `network.transport`, since the transport of a stream is unknown.
//!
//! No field contains a key, tag or nonce.
//!
//! ## Why the level is `INFO`
//!
//! A span should exist whenever an event inside it is shown. Under the usual filter, `INFO` events of the inner service
//! would otherwise lack the name of their peer. To see the names with the filter `warn`, use
//! `warn,tower_challenge=info`. To disable the spans of unauthenticated peers, use `tower_challenge=warn`.
//!
//! # Events
//!
//! | event | level | fields |
//! |---|---|---|
//! | `handshake succeeded` | `DEBUG` | those of the span |
//! | `handshake failed` | `INFO`; `WARN` for `random` and `key_source`, which are faults of this side | `error.type`, `error`, `challenge.claimed_key_id`, and those of the span |
//! | `connection probed` | `DEBUG` | those of the span: the peer closed the connection before it sent anything |
//! | `handshake abandoned` | `INFO` | those of the span |
//! | `not admitted` | `INFO`; `WARN` for `overloaded`: the inner service is too slow | `network.peer.address`, `error.type` |
//! | `handshakes failed` | `INFO`; `WARN` if it includes one of the kinds above | `challenge.failures.total`, `challenge.failures.suppressed`, and the number of each kind that occurred, e.g. `challenge.failures.refused` |
//!
//! `error` contains the details that the peer does not learn: the reason of a refusal, the text of an I/O error, the
//! error of a key source.
//!
//! `challenge.claimed_key_id` is set on refusals by mechanisms in which the peer sends a key id. **The peer chose it
//! and proved nothing.** It is a [`ClaimedKeyId`](crate::ClaimedKeyId): escaped, shortened to 64 characters, and
//! without long runs of hexadecimal digits. `error` contains it in the same form. It is not a field of the span, and
//! never a metric label.
//!
//! ## Rate limit
//!
//! Anyone who can connect could fill the log. Therefore only **five failures in 10 seconds** have an event of their
//! own, where failures are failed handshakes, abandoned handshakes and connections that were not admitted. Further
//! failures are counted. The interval begins with the first failure. After it has ended, the next handshake that ends,
//! in whatever way, emits one `handshakes failed` event if failures were suppressed. It counts all failures of the
//! interval, including those with an event of their own.
//!
//! Probes, such as the health checks of a load balancer, have `DEBUG` events only. The summary counts them, but probes
//! alone cause no summary.
//!
//! Each [`Admission`](crate::Admission) has its own interval, and so does each acceptor that does not share one. Any
//! remaining summary is emitted when the last clone is dropped and the last handshake has ended. On the client's side
//! each [`Connector`](crate::Connector) has an interval, which its clones share.
//!
//! ## Events of the accept loop
//!
//! `serve` and `Incoming` report errors to their `on_error` callback. Without a callback, and with the
//! feature `tracing`, they emit these events instead, which have no rate limit:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `accept failed` | `WARN` | `error` |
//! | `connection failed` | `INFO` | `network.peer.address`, `error` |
//! | `service panicked` | `ERROR` | `network.peer.address`, `panic.message` |
//!
//! A failed handshake is not logged a second time by `connection failed`.
//!
//! # Metrics
//!
//! The names follow [Prometheus' conventions](https://prometheus.io/docs/practices/naming/), and
//! `metrics-exporter-prometheus` exports them unchanged. The constants of this module are for the settings of an
//! exporter, e.g. the buckets of the histogram. Call `describe` to register descriptions and units; it is not called
//! automatically.
//!
//! | metric | type | labels | unit | meaning |
//! |---|---|---|---|---|
//! | `challenge_handshakes_total` | counter | `role`, `mechanism`, `outcome` | | handshakes that have ended; on the server's side those that were admitted |
//! | `challenge_handshake_duration_seconds` | histogram | `role`, `mechanism`, `outcome` | seconds | duration since the call of `accept` or `connect`, including the time in which a refused peer reads the verdict |
//! | `challenge_handshakes_pending` | gauge | | | handshakes in flight: the sum of [`Admission::pending`](crate::Admission::pending) of all admissions, and evicted handshakes that are not dropped yet |
//! | `challenge_not_admitted_total` | counter | `reason` | | connections that were not admitted: `source_limit`, `overloaded`, `throttled` |
//! | `challenge_connections_accepted_total` | counter | | | connections that `serve` and `Incoming` have accepted |
//! | `challenge_connections_open` | gauge | | | those whose stream is not dropped yet: handshakes and sessions |
//! | `challenge_accept_errors_total` | counter | `kind` | | connections that could not be accepted, by [`io::ErrorKind`](std::io::ErrorKind) in `snake_case` |
//! | `challenge_panics_total` | counter | | | connections on which the service panicked |
//! | `challenge_errors_dropped_total` | counter | | | errors that `on_error` did not receive, because its queue was full or no thread could be started |
//! | `challenge_callback_panics_total` | counter | | | panics of `on_error` |
//!
//! A peer cannot choose the value of a label: no label is an address or a key id. A mechanism has at most 18 outcomes.
//!
//! Gauges return to zero however a connection ends, even if the recorder is installed while it is open. An exporter
//! that removes idle metrics must keep gauges, since a gauge that was removed starts again at zero.
//!
//! The number of throttled sources is not a gauge, since it also changes by the passing of time, without an event that
//! could update it. Call [`Admission::throttled`](crate::Admission::throttled) when the metrics are read, as the
//! example does.
//!
//! [network]: https://opentelemetry.io/docs/specs/semconv/registry/attributes/network/
//! [user]: https://opentelemetry.io/docs/specs/semconv/registry/attributes/user/
//! [error]: https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/

#[cfg(feature = "tracing")]
mod failures;
#[cfg_attr(not(feature = "metrics"), path = "meter_off.rs")]
mod meter;
mod names;
#[cfg(any(feature = "tracing", feature = "metrics"))]
mod outcome;
#[cfg_attr(not(feature = "tracing"), path = "trace_off.rs")]
mod trace;

use std::net::{IpAddr, SocketAddr};

pub(crate) use self::meter::Held;
#[cfg(feature = "metrics")]
pub use self::meter::describe;
#[cfg(feature = "net")]
pub(crate) use self::meter::{accept_failed, callback_panicked, error_dropped, panicked};
pub use self::names::{
    ACCEPT_ERRORS, CALLBACK_PANICS, CONNECTIONS_ACCEPTED, CONNECTIONS_OPEN, ERRORS_DROPPED,
    HANDSHAKE_DURATION, HANDSHAKES, HANDSHAKES_PENDING, NOT_ADMITTED, PANICS,
};
#[cfg(feature = "net")]
pub(crate) use self::trace::serve_error;
pub(crate) use self::trace::{Failures, Span};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Handshake, Mechanism, Role as _};
use crate::transport::TransportInfo;

/// The instrumentation of a handshake, from its admission until it succeeds, fails or is abandoned.
pub(crate) struct Observed {
    // Updated before `trace`, so that the metrics include each handshake that is in the log.
    meter: meter::Handshake,
    trace: trace::Handshake,
}

impl Observed {
    /// Creates the instrumentation of a handshake that was not admitted, which records nothing.
    pub(crate) fn nothing() -> Self {
        Self { meter: meter::Handshake::none(), trace: trace::Handshake::none() }
    }

    pub(crate) fn begin<M: Mechanism>(info: &TransportInfo, failures: &Failures) -> Self {
        Self {
            meter: meter::Handshake::begin(M::Role::NAME, M::NAME),
            trace: trace::Handshake::begin(M::Role::NAME, M::NAME, info.peer_addr, failures),
        }
    }

    /// Returns the span of the connection.
    pub(crate) fn span(&self) -> Span {
        self.trace.span()
    }

    /// Sets the peer's address, which was not known at the beginning.
    pub(crate) fn set_peer_addr(&mut self, peer_addr: Option<SocketAddr>) {
        self.trace.set_peer_addr(peer_addr);
    }

    pub(crate) fn succeeded<H: Handshake>(&mut self, peer: &H::Peer) {
        self.meter.succeeded();
        self.trace.succeeded::<H>(peer);
    }

    pub(crate) fn failed(&mut self, error: &HandshakeError) {
        self.meter.failed(error.kind());
        self.trace.failed(error);
    }
}

/// Records a peer that was not admitted.
pub(crate) fn not_admitted(failures: &Failures, ip: Option<IpAddr>, kind: HandshakeErrorKind) {
    meter::not_admitted(kind);
    failures.not_admitted(ip, kind);
}
