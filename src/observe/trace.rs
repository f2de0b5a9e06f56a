//! Spans and events through `tracing`.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::{Level, Span as TracingSpan};

use super::failures::{Counts, Failure, Interval};
use super::outcome::{Outcome, for_each_kind, name};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism;

/// The target of all spans and events, so that one filter matches them.
const TARGET: &str = "tower_challenge";

/// Emits an event: `WARN` if this side is at fault, and `INFO` if a peer is.
macro_rules! event {
    ($own_fault:expr, $(parent: $parent:expr,)? { $($fields:tt)* }, $message:literal) => {
        if $own_fault {
            tracing::event!(target: TARGET, $(parent: $parent,)? Level::WARN, { $($fields)* }, $message);
        } else {
            tracing::event!(target: TARGET, $(parent: $parent,)? Level::INFO, { $($fields)* }, $message);
        }
    };
}

/// The span of a connection. It ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Span(TracingSpan);

/// The guard of an entered span.
pub(crate) type Entered<'a> = tracing::span::Entered<'a>;

impl Span {
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.0.enter()
    }
}

/// The span and the events of a handshake, from its admission to its end.
pub(super) struct Handshake {
    span: Span,
    // `None` after the end.
    ongoing: Option<Ongoing>,
}

struct Ongoing {
    since: Instant,
    failures: Failures,
}

impl Handshake {
    pub(super) fn none() -> Self {
        Self { span: Span(TracingSpan::none()), ongoing: None }
    }

    pub(super) fn begin(
        role: &'static str,
        mechanism: &'static str,
        peer: Option<SocketAddr>,
        failures: &Failures,
    ) -> Self {
        let ip = peer.map(|peer| peer.ip().to_canonical());
        // The level of the inner service's events, see "Why the level is `INFO`" in the module documentation.
        let span = tracing::info_span!(
            target: TARGET,
            "connection",
            network.peer.address = ip.map(display),
            network.peer.port = peer.map(|peer| peer.port()),
            network.type = ip.map(|ip| if ip.is_ipv4() { "ipv4" } else { "ipv6" }),
            challenge.role = role,
            challenge.mechanism = mechanism,
            challenge.outcome = Empty,
            challenge.handshake.duration = Empty,
            user.id = Empty,
            error.type = Empty,
        );
        let ongoing = Ongoing { since: Instant::now(), failures: failures.clone() };
        Self { span: Span(span), ongoing: Some(ongoing) }
    }

    pub(super) fn set_peer_addr(&mut self, peer: Option<SocketAddr>) {
        let Some(peer) = peer else { return };
        let ip = peer.ip().to_canonical();
        self.span.0.record("network.peer.address", display(ip));
        self.span.0.record("network.peer.port", peer.port());
        self.span.0.record("network.type", if ip.is_ipv4() { "ipv4" } else { "ipv6" });
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(super) fn succeeded<H: mechanism::Handshake>(&mut self, peer: &H::Peer) {
        let Some(failures) = self.end(Outcome::Success) else { return };
        if let Some(key_id) = H::key_id(peer) {
            self.span.0.record("user.id", display(key_id));
        }
        failures.flush(Instant::now());
        let _entered = self.span.enter();
        tracing::debug!(target: TARGET, "handshake succeeded");
    }

    pub(super) fn failed(&mut self, error: &HandshakeError) {
        let kind = error.kind();
        let Some(failures) = self.end(Outcome::Failed(kind)) else { return };
        self.span.0.record("error.type", name(kind));
        let has_event = failures.count(kind.into());
        if kind == HandshakeErrorKind::Probe {
            let _entered = self.span.enter();
            tracing::event!(target: TARGET, Level::DEBUG, { error.type = name(kind) }, "connection probed");
        } else if has_event {
            let claimed = error.claimed_key_id();
            let error: &(dyn Error + 'static) = error;
            let _entered = self.span.enter();
            let claimed = claimed.map(display);
            event!(
                is_own_fault(kind),
                { error.type = name(kind), error, challenge.claimed_key_id = claimed },
                "handshake failed"
            );
        }
    }

    /// Ends the handshake, unless it has ended before. Returns the counters for failures.
    fn end(&mut self, outcome: Outcome) -> Option<Failures> {
        let Ongoing { since, failures } = self.ongoing.take()?;
        self.span.0.record("challenge.outcome", outcome.name());
        self.span.0.record("challenge.handshake.duration", since.elapsed().as_secs_f64());
        Some(failures)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let Some(failures) = self.end(Outcome::Abandoned) else { return };
        if failures.count(Failure::Abandoned) {
            let _entered = self.span.enter();
            tracing::info!(target: TARGET, "handshake abandoned");
        }
    }
}

/// The failures of an admission: failed and abandoned handshakes, and peers that were not admitted. Clones share their
/// state. When the last one is dropped, a remaining summary is emitted.
#[derive(Clone)]
pub(crate) struct Failures(Arc<Counted>);

#[derive(Default)]
struct Counted(Mutex<Interval>);

impl Failures {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(super) fn not_admitted(&self, ip: Option<IpAddr>, kind: HandshakeErrorKind) {
        if self.count(kind.into()) {
            let ip = ip.map(|ip| display(ip.to_canonical()));
            event!(is_own_fault(kind), { network.peer.address = ip, error.type = name(kind) }, "not admitted");
        }
    }

    /// Counts a failure, and returns whether it gets an event of its own.
    fn count(&self, failure: Failure) -> bool {
        let now = Instant::now();
        let (counts, has_event) = {
            let mut interval = self.0.interval();
            (interval.close(now), interval.count(failure, now))
        };
        summarize(counts.as_ref());
        has_event
    }

    /// Emits the summary of an interval that has ended.
    fn flush(&self, now: Instant) {
        let counts = self.0.interval().close(now);
        summarize(counts.as_ref());
    }
}

impl Counted {
    // Never locked while an event is emitted, since a subscriber is foreign code.
    fn interval(&self) -> MutexGuard<'_, Interval> {
        // No panic can leave the interval in an inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let counts = self.interval().take();
        summarize(counts.as_ref());
    }
}

/// Logs an error of an accept loop without an `on_error` callback. Failed handshakes have been logged already.
#[cfg(feature = "net")]
pub(crate) fn serve_error<A: crate::transport::PeerAddr>(error: &crate::serve::ServeError<A>) {
    use crate::serve::ServeError;

    if error.handshake_error().is_some() {
        return;
    }
    let ip = error.addr().and_then(A::socket_addr).map(|addr| display(addr.ip().to_canonical()));
    match error {
        ServeError::Accept(error) => {
            let error: &(dyn Error + 'static) = error;
            tracing::event!(target: TARGET, Level::WARN, { error }, "accept failed");
        }
        ServeError::Connection { error, .. } => {
            let error: &(dyn Error + 'static) = &**error;
            tracing::event!(target: TARGET, Level::INFO, { network.peer.address = ip, error }, "connection failed");
        }
        ServeError::Panicked { message, .. } => {
            let message = message.escape_debug();
            tracing::event!(
                target: TARGET,
                Level::ERROR,
                { network.peer.address = ip, panic.message = %message },
                "service panicked"
            );
        }
    }
}

/// Returns whether this side is at fault, and not the peer, so that an operator should look at it.
const fn is_own_fault(kind: HandshakeErrorKind) -> bool {
    matches!(
        kind,
        HandshakeErrorKind::Random | HandshakeErrorKind::KeySource | HandshakeErrorKind::Overloaded
    )
}

macro_rules! summary {
    ($($kind:ident $name:ident),*) => {
        /// Emits one event for all failures of an interval.
        fn summarize(counts: Option<&Counts>) {
            let Some(counts) = counts else { return };
            let own_fault = [$(HandshakeErrorKind::$kind),*]
                .into_iter()
                .any(|kind| is_own_fault(kind) && counts.of(kind.into()).is_some());
            event!(
                own_fault,
                // The event is about many connections, so it must not be in the span of one.
                parent: None,
                {
                    challenge.failures.total = counts.total(),
                    challenge.failures.suppressed = counts.suppressed(),
                    challenge.failures.abandoned = counts.of(Failure::Abandoned),
                    $(challenge.failures.$name = counts.of(Failure::$kind),)*
                },
                "handshakes failed"
            );
        }
    };
}
for_each_kind!(summary!());
