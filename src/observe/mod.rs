//! Seeing it: a span for each connection and lines of the log through `tracing`, numbers through `metrics`.
//!
//! Each is a cargo feature of its name, off by default. Without them there is nothing of it: no field, no branch, no
//! memory. With them, and without a subscriber or recorder, it is some atomics and a lock a handshake, and with
//! `metrics` two small allocations for labels. All of it is the server's side.
//!
//! `cargo run --example observe --features tracing,metrics` is a server that shows both.
//!
//! # The span of a connection
//!
//! Its name is `connection`, its target `tower_challenge`, its level `INFO`. It begins with the handshake, in
//! [`Acceptor::accept`](crate::Acceptor::accept) or [`accept_admitted`](crate::Acceptor::accept_admitted), below the
//! span that is current there; who is not admitted has none. In a [`ChallengeLayer`](crate::ChallengeLayer) it lasts
//! until the response of the inner service, so **what the inner service logs is inside the span of its connection**,
//! also where it is dropped midway. With an [`Acceptor`](crate::Acceptor) alone it is over when the handshake is, and
//! so with `Incoming`, which hands streams over.
//!
//! | field | value | set | after |
//! |---|---|---|---|
//! | `network.peer.address` | the peer's IP address, where it is known | at the beginning | OpenTelemetry, [network] (stable) |
//! | `network.peer.port` | its port | at the beginning | OpenTelemetry, [network] (stable) |
//! | `network.type` | `ipv4` or `ipv6` | at the beginning | OpenTelemetry, [network] (stable) |
//! | `challenge.mechanism` | [`Mechanism::NAME`] | at the beginning | own |
//! | `challenge.outcome` | `success`, the kind of error, or `abandoned` | after the handshake | own |
//! | `challenge.handshake.duration` | in seconds, from the call of `accept` on | after the handshake | own; the unit is OpenTelemetry's |
//! | `user.id` | the id of the key that the peer has proven to hold | after success | OpenTelemetry, [user] (development) |
//! | `error.type` | the kind of error | after failure | OpenTelemetry, [error] (stable) |
//!
//! The kinds are those of [`HandshakeErrorKind`] in `snake_case`: `refused`, `timed_out`, `closed_early`. A handshake
//! is `abandoned` if its future is dropped before it is over, by a timeout around it or an abort. IPv6 addresses that
//! stand for an IPv4 address are IPv4, as in [admission](crate::admission). There is no `network.transport`, since
//! nobody says what carries a stream.
//!
//! A key id that was claimed and not proven is in no field, nor is any key, tag or nonce. What a source of keys says
//! when it fails is in the line as it is.
//!
//! ## Why `INFO`
//!
//! A span should be there wherever something in it is. What the inner service says on `INFO` and above would
//! otherwise have no name under the usual filter. Who filters `warn` and wants the names has them with
//! `warn,tower_challenge=info`, and who does not want the spans of strangers filters `tower_challenge=warn`.
//!
//! # The lines
//!
//! | line | level | fields |
//! |---|---|---|
//! | `handshake succeeded` | `DEBUG` | those of the span |
//! | `handshake failed` | `INFO`; `WARN` for what is this side's own fault: `random`, `key_source` | `error.type`, `error`, and those of the span |
//! | `handshake abandoned` | `INFO` | those of the span |
//! | `not admitted` | `INFO`; `WARN` for `overloaded`: the inner service is behind | `network.peer.address`, `error.type` |
//! | `handshakes failed` | `INFO`; `WARN` if one of these kinds is in it | `challenge.failures.total`, `.suppressed`, and one for each kind that there was: `challenge.failures.refused` |
//!
//! Whoever can connect could fill the log. So failures, abandoned handshakes and peers that were not admitted have a
//! line of their own **five times in 10 seconds**, and are counted beyond that. The interval begins with the first of
//! them. When it is over, the next handshake that ends in whichever way brings the one line `handshakes failed`,
//! which counts all of the interval, those with a line of their own too; without anything suppressed there is none.
//! An [`Admission`](crate::Admission) counts by itself, and so does every acceptor that has its own; the last of its
//! clones and handshakes that goes brings what has not been said yet.
//!
//! What ends an accepted connection after its handshake, and what `serve` says of accepting, goes to its `on_error`.
//!
//! # Metrics
//!
//! The names are those of [Prometheus' conventions](https://prometheus.io/docs/practices/naming/), which the exporter
//! `metrics-exporter-prometheus` leaves as they are; the constants here are for an exporter's settings. With the
//! feature, `describe` tells a recorder what each means.
//!
//! | metric | type | labels | unit | what |
//! |---|---|---|---|---|
//! | `challenge_handshakes_total` | counter | `mechanism`, `outcome` | | handshakes that are over: those that were admitted |
//! | `challenge_handshake_duration_seconds` | histogram | `mechanism`, `outcome` | seconds | how long they took, from the call of `accept` on; a refused peer's last words are part of it |
//! | `challenge_handshakes_pending` | gauge | | | [slots](crate::admission::Slot) that are taken: what [`Admission::pending`](crate::Admission::pending) says of all admissions, and what was shed and is not dropped yet |
//! | `challenge_not_admitted_total` | counter | `reason` | | peers that were not admitted: `over_share`, `overloaded`, `penalized` |
//! | `challenge_connections_accepted_total` | counter | | | connections that `serve` and `Incoming` have accepted |
//! | `challenge_connections_open` | gauge | | | of these, whose stream is still there: handshakes and sessions |
//! | `challenge_accept_errors_total` | counter | `kind` | | connections that could not be accepted, by [`io::ErrorKind`](std::io::ErrorKind) in `snake_case` |
//! | `challenge_panics_total` | counter | | | connections on which the service panicked |
//!
//! No label is a peer's to choose: no address, no key id. A mechanism has at most 16 outcomes. Gauges come back to
//! zero however a connection ends, and also where the recorder is installed in the middle of it. An exporter that
//! forgets what is idle must not forget gauges: what is raised again afterwards starts at zero.
//!
//! How many sources are kept out is no gauge, since it changes by time alone, with nobody there to say so: ask
//! [`Admission::penalized`](crate::Admission::penalized) when the metrics are read, as the example does.
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

use std::net::IpAddr;

pub(crate) use self::meter::Held;
#[cfg(feature = "metrics")]
pub use self::meter::describe;
#[cfg(feature = "net")]
pub(crate) use self::meter::{accept_failed, panicked};
pub use self::names::{
    ACCEPT_ERRORS, CONNECTIONS_ACCEPTED, CONNECTIONS_OPEN, HANDSHAKE_DURATION, HANDSHAKES,
    HANDSHAKES_PENDING, NOT_ADMITTED, PANICS,
};
pub(crate) use self::trace::{Failures, Span};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Handshake, Mechanism};
use crate::transport::TransportInfo;

/// A handshake as those see it who look on, from its admission to its end: success, failure, or, where it is dropped
/// before either, that it was abandoned.
pub(crate) struct Observed {
    // Counted first: who reads of it in the log finds it in the numbers.
    meter: meter::Handshake,
    trace: trace::Handshake,
}

impl Observed {
    /// Nothing to see: a handshake that was not admitted.
    pub(crate) fn nothing() -> Self {
        Self { meter: meter::Handshake::none(), trace: trace::Handshake::none() }
    }

    pub(crate) fn begin<M: Mechanism>(info: &TransportInfo, failures: &Failures) -> Self {
        Self {
            meter: meter::Handshake::begin(M::NAME),
            trace: trace::Handshake::begin(M::NAME, info.peer_addr, failures),
        }
    }

    /// The span of the connection.
    pub(crate) fn span(&self) -> Span {
        self.trace.span()
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

/// Somebody at `ip` was not admitted.
pub(crate) fn not_admitted(failures: &Failures, ip: Option<IpAddr>, kind: HandshakeErrorKind) {
    meter::not_admitted(kind);
    failures.not_admitted(ip, kind);
}
