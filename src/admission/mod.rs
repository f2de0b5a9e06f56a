//! Who may try: a bound on the handshakes that are pending, a share of it for each source, and penalties.
//!
//! Whoever can open a connection can leave it open, and a server that waits for each of them runs out of something. A
//! cap alone makes it worse: now it is enough to fill the cap ([RUSTSEC-2024-0341]). So
//!
//! - at most [`max_pending`](AdmissionBuilder::max_pending) handshakes are pending, but for those that have been told
//!   to end and are about to, from the first moment until the inner service is called or the stream is dropped, in
//!   whichever way; a refused peer's last words are part of it;
//! - at most [`max_per_source`](AdmissionBuilder::max_per_source) of them are of one source: an IPv4 address or an IPv6
//!   /64, unless [told otherwise](AdmissionBuilder::prefix_lengths);
//! - nobody queues. Where the cap is full the newcomer is let in all the same, unless all that are pending have proven
//!   themselves and wait for the inner service, and the largest source has to give way: its handshake
//!   that has been pending longest is ended, as [`Shed`](crate::HandshakeErrorKind::Shed). A source is as large as the
//!   time is long for which its pending handshakes have been pending, all together;
//! - a source that fails too often can be kept out for a while before any work is done for it: [`Penalties`], if they
//!   are asked for.
//!
//! Every [`Acceptor`](crate::Acceptor) has an [`Admission`] with the defaults. Set another with
//! [`Acceptor::admission`](crate::Acceptor::admission) or
//! [`ChallengeLayer::admission`](crate::ChallengeLayer::admission); clones of one can guard several listeners
//! together.
//!
//! ```
//! use std::time::Duration;
//! use tower_challenge::admission::{Admission, Penalties};
//! use tower_challenge::{ChallengeLayer, Key, KeyEntry, KeyRing, one_way};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let admission = Admission::builder()
//!     .max_pending(2_000)
//!     .max_per_source(50)
//!     .exempt("10.0.0.0/8".parse()?) // our own
//!     .penalties(Penalties::new().refused(Duration::from_secs(30)))
//!     .build();
//! let keys = KeyRing::new([KeyEntry::new("alice", Key::generate()?)?])?;
//! let layer = ChallengeLayer::new(one_way::Server::new(keys)).admission(admission.clone());
//! assert_eq!(admission.pending(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Where a source comes from
//!
//! From [`TransportInfo::peer_addr`](crate::transport::TransportInfo::peer_addr): a TCP stream knows it, `serve`
//! passes on what `accept` said, and [`inspect`](crate::Acceptor::inspect) says it for other streams, or in place of
//! what they say themselves, behind a proxy that names the real one. Streams without one, Unix sockets say, are one
//! source together, bounded by the cap alone.
//!
//! # Before a handshake of another kind
//!
//! A stranger can stall in TLS as well. [`Admission::admit`] gives a [`Slot`] before that begins, [`Slot::guard`] has
//! TLS end in time, and [`Acceptor::accept_admitted`](crate::Acceptor::accept_admitted) goes on with it:
//!
//! ```
//! use std::time::Duration;
//!
//! use tokio::net::TcpStream;
//! use tower_challenge::{Acceptor, one_way};
//!
//! # async fn tls_accept(tcp: TcpStream) -> std::io::Result<TcpStream> { Ok(tcp) }
//! # async fn example(tcp: TcpStream, acceptor: &Acceptor<one_way::Server>) -> Result<(), Box<dyn std::error::Error>> {
//! let slot = acceptor.admit(Some(tcp.peer_addr()?.ip()))?;
//! let (tls, slot) = slot.guard(Duration::from_secs(5), tls_accept(tcp)).await?;
//! let stream = acceptor.accept_admitted(tls, slot).await?;
//! # drop(stream);
//! # Ok(())
//! # }
//! ```
//!
//! # Why the oldest of the largest source
//!
//! OpenSSH (`MaxStartups`) turns newcomers away with a probability that grows as its cap fills, and all of them when
//! it is full. That is fair among connections, not among people: who connects most gets most. `cargo bench --bench
//! admission` simulates both under the same floods of silent strangers, with 1,000 pending handshakes at most and a
//! deadline of 10 seconds, and counts which part of the honest handshakes succeeds, of 100 ms each:
//!
//! | flood | plain cap | random early drop | and a share | shedding, size by number | **shedding** | **and penalties** | also for being shed |
//! |---|---|---|---|---|---|---|---|
//! | 1 source, 1,000 a second | 11 % | 10 % | 57 % | 100 % | **100 %** | **100 %** | 100 % |
//! | 100 sources, 1,000 a second | 11 % | 10 % | 10 % | 100 % | **100 %** | **100 %** | 100 % |
//! | 10,000 sources, 1,000 a second | 11 % | 10 % | 10 % | 80 % | **100 %** | **100 %** | 100 % |
//! | 10,000 sources, 5,000 a second | 3 % | 2 % | 2 % | 76 % | **99 %** | **99 %** | 99 % |
//! | 10,000 sources, 20,000 a second | 0.4 % | 0.5 % | 0.5 % | 0 % | **0 %** | **0 %** | 71 % |
//! | the same, honest in 10 ms | 0.5 % | 0.5 % | 0.5 % | 98 % | **100 %** | **100 %** | 100 % |
//! | 20,000 a second for 4 s of every 20 s, 1,000,000 sources | 68 % | 67 % | 67 % | 85 % | **86 %** | **86 %** | 40 % |
//!
//! By number, two quick friends behind one address are larger than a stranger who has been silent for seconds. And
//! where a thousand newcomers arrive in less time than a handshake takes, all of different sources, no rule helps
//! that knows only who is pending: `max_pending` must be larger than that. Where the same sources come again,
//! remembering who was shed helps ([`Penalties::shed`]); where they are always new, it keeps out none but friends,
//! who come again by nature. So it is off unless asked for.
//!
//! [RUSTSEC-2024-0341]: https://rustsec.org/advisories/RUSTSEC-2024-0341.html

mod builder;
mod penalties;
mod record;
mod slot;
mod source;
mod table;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

pub use self::builder::AdmissionBuilder;
pub use self::penalties::Penalties;
use self::record::Record;
pub use self::slot::Slot;
use self::source::{Source, Sources};
use self::table::{Admitted, Table};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::observe::{self, Failures};

/// The handshakes that are pending on the server's side, and who may begin another. Cheap to clone; clones are the
/// same.
///
/// See the [module](self) for what it does and an example.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    begin: Instant,
    // Never locked while foreign code runs: what wakes a task is done outside.
    table: Mutex<Table>,
    record: Option<Mutex<Record>>,
    failures: Failures,
}

impl Admission {
    /// An admission with the defaults, to be set further and [built](AdmissionBuilder::build).
    pub fn builder() -> AdmissionBuilder {
        AdmissionBuilder::new()
    }

    fn new(sources: Sources, table: Table, penalties: Option<Penalties>) -> Self {
        let record = penalties.map(|penalties| Mutex::new(Record::new(penalties)));
        let shared = Shared {
            sources,
            begin: Instant::now(),
            table: Mutex::new(table),
            record,
            failures: Failures::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Admits a handshake with a peer at `ip`, or at an unknown place. It is pending until the [`Slot`] is dropped.
    ///
    /// An [`Acceptor`](crate::Acceptor) does this by itself in `accept`.
    ///
    /// # Errors
    ///
    /// [`Penalized`](HandshakeErrorKind::Penalized), [`OverShare`](HandshakeErrorKind::OverShare), or, if all that are
    /// pending have proven themselves and wait for the inner service, [`Overloaded`](HandshakeErrorKind::Overloaded).
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<Slot, HandshakeError> {
        self.admit_source(self.shared.sources.of(ip), Instant::now()).map_err(|kind| {
            observe::not_admitted(&self.shared.failures, ip, kind);
            kind.into()
        })
    }

    fn admit_source(&self, source: Source, now: Instant) -> Result<Slot, HandshakeErrorKind> {
        if self.shared.is_penalized(source, now) {
            return Err(HandshakeErrorKind::Penalized);
        }
        let since_begin = now.saturating_duration_since(self.shared.begin);
        let Admitted { number, revoked, victim } = self.shared.table().admit(source, since_begin)?;
        let slot = Slot::new(Arc::clone(&self.shared), source, number, revoked, now);
        if let Some(victim) = victim {
            // Gone already is as good as told.
            let _ = victim.send(());
        }
        Ok(slot)
    }

    /// How many handshakes are pending now, those that have succeeded and wait for the inner service included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.shared.table().len()
    }

    /// How many sources are refused now. Always 0 without [`Penalties`].
    #[must_use]
    pub fn penalized(&self) -> usize {
        self.shared.record().map_or(0, |record| record.penalized(Instant::now()))
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in there is left half done by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> Option<MutexGuard<'_, Record>> {
        self.record.as_ref().map(|record| record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_penalized(&self, source: Source, now: Instant) -> bool {
        source
            .limited()
            .is_some_and(|net| self.record().is_some_and(|mut record| record.is_penalized(net, now)))
    }

    /// The penalty for a handshake that has been pending since then.
    fn penalize(&self, source: Source, kind: HandshakeErrorKind, since: Instant) {
        if let Some((net, mut record)) = source.limited().zip(self.record()) {
            let now = Instant::now();
            record.add(net, kind, now.saturating_duration_since(since), now);
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("pending", &self.pending()).finish_non_exhaustive()
    }
}
