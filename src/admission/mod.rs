//! Admission control: a cap on in-flight handshakes, a limit for each source, and penalties.
//!
//! Anyone who can open a connection can leave it open, and a server that waits on every connection exhausts file
//! descriptors or memory. A cap alone makes this worse, because an attacker only has to fill it
//! ([RUSTSEC-2024-0341]). This module applies four rules instead:
//!
//! - **Cap.** At most [`max_pending`](AdmissionBuilder::max_pending) handshakes are in flight. A handshake counts from
//!   the accepted connection until the inner service is called or the stream is dropped, including the time in which a
//!   refused peer reads the verdict. An evicted handshake no longer counts.
//! - **Limit for each source.** While at least three quarters of the cap are in use, one source may have at most
//!   [`max_per_source`](AdmissionBuilder::max_per_source) handshakes in flight. A source is an IPv4 address or an IPv6
//!   /64 by default, see [`prefix_lengths`](AdmissionBuilder::prefix_lengths).
//! - **Eviction.** There is no queue: when the cap is reached, the new handshake is admitted and the oldest handshake
//!   of the heaviest source is evicted, with the error [`Evicted`](crate::HandshakeErrorKind::Evicted). A source's
//!   weight is the summed age of its in-flight handshakes. Refused peers that still read their verdict are evicted
//!   before all others. A handshake that has succeeded and waits for the inner service cannot be evicted. If all of
//!   them have, the new one fails with [`Overloaded`](crate::HandshakeErrorKind::Overloaded).
//! - **Penalties.** A source that fails too often can be throttled: its connections are closed for a while before any
//!   work is done for them. Off by default, see [`Penalties`].
//!
//! The setting `max_connections` of `serve` and `Incoming` limits all connections, including sessions. Admission
//! control limits handshakes only.
//!
//! Every [`Acceptor`](crate::Acceptor) has an [`Admission`] with the default settings. Set another one with
//! [`Acceptor::admission`](crate::Acceptor::admission) or
//! [`ChallengeLayer::admission`](crate::ChallengeLayer::admission). To limit several listeners together, give each of
//! them a clone of the same `Admission`.
//!
//! ```
//! use std::time::Duration;
//! use tower_challenge::admission::{Admission, Penalties};
//! use tower_challenge::{ChallengeLayer, Key, KeyEntry, one_way};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let admission = Admission::builder()
//!     .max_pending(2_000)
//!     .max_per_source(50)
//!     .exempt("10.0.0.0/8".parse()?) // e.g. the load balancer
//!     .penalties(Penalties::new().refused(Duration::from_secs(30)))
//!     .build()?;
//!
//! let keys = one_way::KeyRing::new([KeyEntry::new("alice", Key::generate()?)?])?;
//! let layer = ChallengeLayer::new(one_way::Server::new(keys))
//!     .admission(admission.clone());
//! assert_eq!(admission.pending(), 0);
//! # drop(layer);
//! # Ok(())
//! # }
//! ```
//!
//! # How the source is determined
//!
//! The source is derived from [`TransportInfo::peer_addr`](crate::transport::TransportInfo::peer_addr). A TCP stream
//! reports its peer's address, and `serve` and `Incoming` pass on the address that `accept` returned. Behind a load
//! balancer, the step `ProxyProtocol` of [`prepare`](crate::prepare) reads the client's address. For any other stream,
//! set it with [`WithInfo`](crate::transport::WithInfo).
//!
//! All streams without an address, e.g. Unix sockets, are one source, which only the cap limits.
//!
//! # Include a TLS handshake
//!
//! A peer can also stall during the TLS handshake. A step that is set with
//! [`ChallengeLayer::prepare`](crate::ChallengeLayer::prepare) runs in the slot of the handshake. Without such a step,
//! [`Admission::admit`] takes a [`Slot`] before TLS begins, [`Slot::guard`] gives it a timeout, and
//! [`Acceptor::accept_admitted`](crate::Acceptor::accept_admitted) continues with the same slot:
//!
//! ```
//! use std::time::Duration;
//!
//! use tokio::net::TcpStream;
//! use tower_challenge::{Acceptor, one_way};
//!
//! # async fn tls_accept(tcp: TcpStream) -> std::io::Result<TcpStream> { Ok(tcp) }
//! # async fn example(
//! #     tcp: TcpStream, acceptor: &Acceptor<one_way::Server>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let slot = acceptor.admit(Some(tcp.peer_addr()?.ip()))?;
//! let timeout = Duration::from_secs(5);
//! let (tls, slot) = slot.guard(timeout, tls_accept(tcp)).await?;
//! let stream = acceptor.accept_admitted(tls, slot).await?;
//! # drop(stream);
//! # Ok(())
//! # }
//! ```
//!
//! # Why the oldest handshake of the heaviest source
//!
//! OpenSSH (`MaxStartups`) rejects new connections with a probability that grows as its cap fills, and all of them when
//! the cap is reached. This is fair among connections, but not among clients: a client that opens more connections gets
//! more of them accepted. `cargo bench -p benches --bench admission` simulates both policies under the same floods of
//! silent unauthenticated peers, with a cap of 1,000 in-flight handshakes and a deadline of 10 seconds. The table shows
//! the share of legitimate handshakes that succeed; each takes 100 ms.
//!
//! | flood | plain cap | random early drop | and a source limit | eviction, weight by count | **eviction, weight by age** | **and penalties** | and penalties for evictions |
//! |---|---|---|---|---|---|---|---|
//! | 1 source, 1,000 a second | 11 % | 10 % | 57 % | 100 % | **100 %** | **100 %** | 100 % |
//! | 100 sources, 1,000 a second | 11 % | 10 % | 10 % | 100 % | **100 %** | **100 %** | 100 % |
//! | 10,000 sources, 1,000 a second | 11 % | 10 % | 10 % | 80 % | **100 %** | **100 %** | 100 % |
//! | 10,000 sources, 5,000 a second | 3 % | 2 % | 2 % | 76 % | **99 %** | **99 %** | 99 % |
//! | 10,000 sources, 20,000 a second | 0.4 % | 0.5 % | 0.5 % | 0 % | **0 %** | **0 %** | 71 % |
//! | the same, legitimate handshakes take 10 ms | 0.5 % | 0.5 % | 0.5 % | 98 % | **100 %** | **100 %** | 100 % |
//! | 20,000 a second for 4 s of every 20 s, 1,000,000 sources | 68 % | 67 % | 67 % | 85 % | **86 %** | **86 %** | 40 % |
//!
//! With weight by count, two fast legitimate clients that share an address outweigh an unauthenticated peer that has
//! been silent for seconds.
//!
//! If as many connections as the cap arrive in less time than a handshake takes, all from different sources, no rule
//! helps that only knows the in-flight handshakes: `max_pending` must be larger than that number. Penalties for evicted
//! handshakes ([`Penalties::evicted`]) help if the flood comes from the same sources again. If its sources are always
//! new, these penalties only throttle legitimate clients, which are the ones that come again. They are therefore off by
//! default.
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
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

pub use self::builder::{AdmissionBuilder, AdmissionError};
pub use self::penalties::Penalties;
use self::record::Record;
pub use self::slot::Slot;
#[cfg(feature = "proxy-protocol")]
pub(crate) use self::source::canonical;
use self::source::{Source, Sources};
use self::table::{Admitted, Table};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::observe::{self, Failures};

/// The admission control of a server: counts in-flight handshakes and decides which connections may begin one.
///
/// See the [module documentation](self) for its rules and an example. Cheap to clone. All clones share their state.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    created: Instant,
    // Never locked while foreign code runs. Tasks are woken after it is unlocked.
    table: Mutex<Table>,
    record: Option<Mutex<Record>>,
    // The sources that other servers have throttled. Apart from this server's own, so that no number of them displaces
    // those.
    reported: Option<Mutex<Record>>,
    failures: Failures,
}

impl Admission {
    /// Returns a builder with the default settings.
    pub fn builder() -> AdmissionBuilder {
        AdmissionBuilder::new()
    }

    fn new(sources: Sources, table: Table, penalties: Option<Penalties>) -> Self {
        let reported = penalties.clone().map(|penalties| Mutex::new(Record::new(penalties)));
        let record = penalties.map(|penalties| Mutex::new(Record::new(penalties)));
        let shared = Shared {
            sources,
            created: Instant::now(),
            table: Mutex::new(table),
            record,
            reported,
            failures: Failures::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Admits a handshake with a peer at `ip`, or at an unknown address. It is in flight until the [`Slot`] is dropped.
    ///
    /// [`Acceptor::accept`](crate::Acceptor::accept) calls this itself.
    ///
    /// # Errors
    ///
    /// - [`Throttled`](HandshakeErrorKind::Throttled) if the source failed too often.
    /// - [`SourceLimit`](HandshakeErrorKind::SourceLimit) if the source has too many handshakes in flight.
    /// - [`Overloaded`](HandshakeErrorKind::Overloaded) if the cap is reached and all handshakes in flight have
    ///   succeeded and wait for the inner service.
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<Slot, HandshakeError> {
        self.admit_source(self.shared.sources.of(ip), Instant::now()).map_err(|kind| {
            observe::not_admitted(&self.shared.failures, ip, kind);
            kind.into()
        })
    }

    fn admit_source(&self, source: Source, now: Instant) -> Result<Slot, HandshakeErrorKind> {
        if self.shared.is_throttled(source, now) {
            return Err(HandshakeErrorKind::Throttled);
        }
        let since_created = now.saturating_duration_since(self.shared.created);
        let Admitted { number, evicted, victim } = self.shared.table().admit(source, since_created)?;
        let slot = Slot::new(Arc::clone(&self.shared), source, number, evicted, now);
        if let Some(victim) = victim {
            // An error means that the handshake has ended in the meantime.
            let _ = victim.send(());
        }
        Ok(slot)
    }

    /// Returns the number of handshakes in flight, including those that have succeeded and wait for the inner service.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.shared.table().len()
    }

    /// Returns the number of sources that are throttled now. Always 0 without [`Penalties`].
    #[must_use]
    pub fn throttled(&self) -> usize {
        let now = Instant::now();
        self.shared.records().map(|record| lock(record).throttled(now)).sum()
    }

    /// Returns the sources that this server has throttled since the last call, for the other servers of a fleet: see
    /// [`throttle`](Self::throttle).
    ///
    /// At most 1,024, the latest ones: call it often enough. Always empty without [`Penalties`].
    #[must_use]
    pub fn take_throttled(&self) -> Vec<Throttled> {
        let record = self.shared.record.as_ref().map(lock);
        record.map_or_else(Vec::new, |mut record| record.take_news(Instant::now()))
    }

    /// Throttles a source as another server of the fleet has. Returns `false`, and does nothing, unless `source` is a
    /// source of this server: without [`Penalties`], if the prefix has another length than
    /// [`prefix_lengths`](AdmissionBuilder::prefix_lengths), if it is exempt, or if there are too many.
    ///
    /// The time is limited to [`Penalties::max`], and the number of such sources to [`Penalties::max_sources`], apart
    /// from the sources that this server throttles itself. [`take_throttled`](Self::take_throttled) does not return
    /// them.
    #[must_use = "the source may not have been throttled"]
    pub fn throttle(&self, source: IpNet, remaining: Duration) -> bool {
        let Some(reported) = &self.shared.reported else { return false };
        let Source::Limited(net) = self.shared.sources.of(Some(source.addr())) else { return false };
        if net != source.trunc() {
            return false;
        }
        lock(reported).throttle(net, remaining, Instant::now())
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No panic can leave the table in an inconsistent state.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> impl Iterator<Item = &Mutex<Record>> {
        self.record.iter().chain(&self.reported)
    }

    fn is_throttled(&self, source: Source, now: Instant) -> bool {
        let Some(net) = source.limited() else { return false };
        self.records().any(|record| lock(record).is_throttled(net, now))
    }

    /// Records the penalty for a handshake that failed and has been in flight since `since`.
    fn penalize(&self, source: Source, kind: HandshakeErrorKind, since: Instant) {
        if let Some((net, record)) = source.limited().zip(self.record.as_ref()) {
            let now = Instant::now();
            lock(record).add(net, kind, now.saturating_duration_since(since), now);
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A source that is refused for a while, from [`Admission::take_throttled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Throttled {
    /// An IPv4 address or an IPv6 prefix, as [`AdmissionBuilder::prefix_lengths`] defines sources.
    pub source: IpNet,
    /// For how long it is refused from now on.
    pub remaining: Duration,
}

impl Default for Admission {
    fn default() -> Self {
        Self::builder().build_checked()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("pending", &self.pending()).finish_non_exhaustive()
    }
}
