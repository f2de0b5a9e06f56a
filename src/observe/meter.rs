//! Metrics through the facade `metrics`.

use metrics::{Gauge, Unit, counter, gauge, histogram};
use tokio::time::Instant;

use super::names::{
    ACCEPT_ERRORS, CALLBACK_PANICS, CONNECTIONS_ACCEPTED, CONNECTIONS_OPEN, ERRORS_DROPPED,
    HANDSHAKE_DURATION, HANDSHAKES, HANDSHAKES_PENDING, NOT_ADMITTED, PANICS,
};
use super::outcome::{Outcome, name};
use crate::error::HandshakeErrorKind;

/// Registers a description of each metric with the installed recorder.
///
/// Call it after the recorder is installed. Further calls have no effect.
pub fn describe() {
    metrics::describe_counter!(HANDSHAKES, "Handshakes that have ended, by outcome");
    metrics::describe_histogram!(HANDSHAKE_DURATION, Unit::Seconds, "Duration of handshakes");
    metrics::describe_gauge!(HANDSHAKES_PENDING, "Handshakes in flight");
    metrics::describe_counter!(NOT_ADMITTED, "Connections that were not admitted to a handshake");
    metrics::describe_counter!(CONNECTIONS_ACCEPTED, "Connections that have been accepted");
    metrics::describe_gauge!(CONNECTIONS_OPEN, "Open connections, both handshakes and sessions");
    metrics::describe_counter!(ACCEPT_ERRORS, "Connections that could not be accepted");
    metrics::describe_counter!(ERRORS_DROPPED, "Errors that the error callback did not receive");
    metrics::describe_counter!(CALLBACK_PANICS, "Panics of the error callback");
    metrics::describe_counter!(PANICS, "Connections on which the service panicked");
}

/// Increments a gauge, and decrements it on drop.
#[derive(Debug)]
pub(crate) struct Held(
    // The gauge that was incremented. A lookup on drop could find the gauge of another recorder.
    Gauge,
);

impl Held {
    /// Counts a handshake in flight.
    pub(crate) fn pending() -> Self {
        Self::new(gauge!(HANDSHAKES_PENDING))
    }

    /// Counts an accepted connection.
    #[cfg(feature = "net")]
    pub(crate) fn connection() -> Self {
        counter!(CONNECTIONS_ACCEPTED).increment(1);
        Self::new(gauge!(CONNECTIONS_OPEN))
    }

    fn new(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// The metrics of a handshake, from its admission to its end.
pub(super) struct Handshake {
    // `None` after the end.
    ongoing: Option<Ongoing>,
}

struct Ongoing {
    role: &'static str,
    mechanism: &'static str,
    since: Instant,
}

impl Handshake {
    pub(super) const fn none() -> Self {
        Self { ongoing: None }
    }

    pub(super) fn begin(role: &'static str, mechanism: &'static str) -> Self {
        Self { ongoing: Some(Ongoing { role, mechanism, since: Instant::now() }) }
    }

    pub(super) fn succeeded(&mut self) {
        self.end(Outcome::Success);
    }

    pub(super) fn failed(&mut self, kind: HandshakeErrorKind) {
        self.end(Outcome::Failed(kind));
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(Ongoing { role, mechanism, since }) = self.ongoing.take() {
            let outcome = outcome.name();
            counter!(HANDSHAKES, "role" => role, "mechanism" => mechanism, "outcome" => outcome).increment(1);
            histogram!(HANDSHAKE_DURATION, "role" => role, "mechanism" => mechanism, "outcome" => outcome)
                .record(since.elapsed());
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.end(Outcome::Abandoned);
    }
}

pub(super) fn not_admitted(kind: HandshakeErrorKind) {
    counter!(NOT_ADMITTED, "reason" => name(kind)).increment(1);
}

#[cfg(feature = "net")]
pub(crate) fn accept_failed(error: &std::io::Error) {
    counter!(ACCEPT_ERRORS, "kind" => snake_case(&format!("{:?}", error.kind()))).increment(1);
}

#[cfg(feature = "net")]
pub(crate) fn panicked() {
    counter!(PANICS).increment(1);
}

#[cfg(feature = "net")]
pub(crate) fn error_dropped() {
    counter!(ERRORS_DROPPED).increment(1);
}

#[cfg(feature = "net")]
pub(crate) fn callback_panicked() {
    counter!(CALLBACK_PANICS).increment(1);
}

/// Converts e.g. `ConnectionAborted` to `connection_aborted`. An `io::ErrorKind` has no name but its `Debug` form.
#[cfg(feature = "net")]
fn snake_case(camel_case: &str) -> String {
    let mut name = String::with_capacity(camel_case.len() + 4);
    for c in camel_case.chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name
}
