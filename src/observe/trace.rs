//! Spans and events, through `tracing`.

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

/// What filters go by, wherever in here it comes from.
const TARGET: &str = "tower_challenge";

/// An event of what peers do, or of what this side can't do.
macro_rules! event {
    ($own_fault:expr, $(parent: $parent:expr,)? { $($fields:tt)* }, $message:literal) => {
        if $own_fault {
            tracing::event!(target: TARGET, $(parent: $parent,)? Level::WARN, { $($fields)* }, $message);
        } else {
            tracing::event!(target: TARGET, $(parent: $parent,)? Level::INFO, { $($fields)* }, $message);
        }
    };
}

/// The span of a connection. Clones are the same span, which is over when the last of them is dropped.
#[derive(Clone)]
pub(crate) struct Span(TracingSpan);

/// What is logged while this is there is inside the span.
pub(crate) type Entered<'a> = tracing::span::Entered<'a>;

impl Span {
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.0.enter()
    }
}

/// A handshake from its admission to its end.
pub(super) struct Handshake {
    span: Span,
    // None once it is over.
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

    pub(super) fn begin(mechanism: &'static str, peer: Option<SocketAddr>, failures: &Failures) -> Self {
        let ip = peer.map(|peer| peer.ip().to_canonical());
        // On the level of what it gives a name to: what an inner service says of its sessions. See the documentation.
        let span = tracing::info_span!(
            target: TARGET,
            "connection",
            network.peer.address = ip.map(display),
            network.peer.port = peer.map(|peer| peer.port()),
            network.type = ip.map(|ip| if ip.is_ipv4() { "ipv4" } else { "ipv6" }),
            challenge.mechanism = mechanism,
            challenge.outcome = Empty,
            challenge.handshake.duration = Empty,
            user.id = Empty,
            error.type = Empty,
        );
        let ongoing = Ongoing { since: Instant::now(), failures: failures.clone() };
        Self { span: Span(span), ongoing: Some(ongoing) }
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(super) fn succeeded<H: mechanism::Handshake>(&mut self, peer: &H::Peer) {
        let Some(failures) = self.over(Outcome::Success) else { return };
        if let Some(key_id) = H::key_id(peer) {
            self.span.0.record("user.id", display(key_id));
        }
        failures.look(Instant::now());
        let _entered = self.span.enter();
        tracing::debug!(target: TARGET, "handshake succeeded");
    }

    pub(super) fn failed(&mut self, error: &HandshakeError) {
        let kind = error.kind();
        let Some(failures) = self.over(Outcome::Failed(kind)) else { return };
        self.span.0.record("error.type", name(kind));
        if failures.count(kind.into()) {
            let error: &(dyn Error + 'static) = error;
            let _entered = self.span.enter();
            event!(is_own_fault(kind), { error.type = name(kind), error }, "handshake failed");
        }
    }

    /// Who counts the failures, if it was not over before.
    fn over(&mut self, outcome: Outcome) -> Option<Failures> {
        let Ongoing { since, failures } = self.ongoing.take()?;
        self.span.0.record("challenge.outcome", outcome.name());
        self.span.0.record("challenge.handshake.duration", since.elapsed().as_secs_f64());
        Some(failures)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let Some(failures) = self.over(Outcome::Abandoned) else { return };
        if failures.count(Failure::Abandoned) {
            let _entered = self.span.enter();
            tracing::info!(target: TARGET, "handshake abandoned");
        }
    }
}

/// The failures of an admission: those of its handshakes, and who was not admitted. Clones are the same; when the
/// last of them goes, what has not been said yet is.
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

    /// Counts one more, and says whether it gets a line of its own.
    fn count(&self, failure: Failure) -> bool {
        let now = Instant::now();
        let (counts, has_line) = {
            let mut interval = self.0.interval();
            (interval.close(now), interval.count(failure, now))
        };
        summarize(counts.as_ref());
        has_line
    }

    /// Says what there is to say at `now`.
    fn look(&self, now: Instant) {
        let counts = self.0.interval().close(now);
        summarize(counts.as_ref());
    }
}

impl Counted {
    // Never locked while something is logged, since that runs foreign code.
    fn interval(&self) -> MutexGuard<'_, Interval> {
        // Nothing in there is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let counts = self.interval().take();
        summarize(counts.as_ref());
    }
}

/// Whether this side has failed, and not the peer: somebody should look at that.
const fn is_own_fault(kind: HandshakeErrorKind) -> bool {
    matches!(
        kind,
        HandshakeErrorKind::Random | HandshakeErrorKind::KeySource | HandshakeErrorKind::Overloaded
    )
}

macro_rules! summary {
    ($($kind:ident $name:ident),*) => {
        /// One line for all failures of an interval.
        fn summarize(counts: Option<&Counts>) {
            let Some(counts) = counts else { return };
            let own_fault = [$(HandshakeErrorKind::$kind),*]
                .into_iter()
                .any(|kind| is_own_fault(kind) && counts.of(kind.into()).is_some());
            event!(
                own_fault,
                // Of many connections, so in the span of none.
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
