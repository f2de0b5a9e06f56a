//! Metrics, through the facade `metrics`.

use metrics::{Gauge, Unit, counter, gauge, histogram};
use tokio::time::Instant;

use super::names::{
    ACCEPT_ERRORS, CONNECTIONS_ACCEPTED, CONNECTIONS_OPEN, HANDSHAKE_DURATION, HANDSHAKES,
    HANDSHAKES_PENDING, NOT_ADMITTED, PANICS,
};
use super::outcome::{Outcome, name};
use crate::error::HandshakeErrorKind;

/// Tells the recorder what each metric means. To be called when it is installed; more than once does no harm.
pub fn describe() {
    metrics::describe_counter!(HANDSHAKES, "Handshakes that are over, by how they ended");
    metrics::describe_histogram!(HANDSHAKE_DURATION, Unit::Seconds, "How long a handshake took");
    metrics::describe_gauge!(HANDSHAKES_PENDING, "Handshakes that are pending");
    metrics::describe_counter!(NOT_ADMITTED, "Peers that were not admitted to a handshake");
    metrics::describe_counter!(CONNECTIONS_ACCEPTED, "Connections that were accepted");
    metrics::describe_gauge!(CONNECTIONS_OPEN, "Connections that are open, handshakes and sessions");
    metrics::describe_counter!(ACCEPT_ERRORS, "Connections that could not be accepted");
    metrics::describe_counter!(PANICS, "Connections on which the service panicked");
}

/// One more in a gauge, as long as it is there.
#[derive(Debug)]
pub(crate) struct Held(
    // The one that was raised, and not looked up again: there may be another recorder by then.
    Gauge,
);

impl Held {
    /// A handshake that is pending.
    pub(crate) fn pending() -> Self {
        Self::new(gauge!(HANDSHAKES_PENDING))
    }

    /// A connection that has been accepted.
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

/// A handshake from its admission to its end.
pub(super) struct Handshake {
    // None once it is over.
    ongoing: Option<Ongoing>,
}

struct Ongoing {
    mechanism: &'static str,
    since: Instant,
}

impl Handshake {
    pub(super) const fn none() -> Self {
        Self { ongoing: None }
    }

    pub(super) fn begin(mechanism: &'static str) -> Self {
        Self { ongoing: Some(Ongoing { mechanism, since: Instant::now() }) }
    }

    pub(super) fn succeeded(&mut self) {
        self.end(Outcome::Success);
    }

    pub(super) fn failed(&mut self, kind: HandshakeErrorKind) {
        self.end(Outcome::Failed(kind));
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(Ongoing { mechanism, since }) = self.ongoing.take() {
            let outcome = outcome.name();
            counter!(HANDSHAKES, "mechanism" => mechanism, "outcome" => outcome).increment(1);
            histogram!(HANDSHAKE_DURATION, "mechanism" => mechanism, "outcome" => outcome)
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

/// `ConnectionAborted` as `connection_aborted`: there is no other name of an `io::ErrorKind`.
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
