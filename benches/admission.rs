//! Simulates floods of silent unauthenticated peers and prints the share of legitimate handshakes that succeed under
//! several admission policies.
//!
//! ```text
//! cargo bench -p benches --bench admission
//! ```
//!
//! It processes arrivals and departures in order of time, with its own random number generator, so every run prints
//! the same numbers. At most 1,000 handshakes are in flight, and a silent peer stays until its deadline of 10 seconds
//! or its eviction.
//!
//! - Eviction, weight by age: the real [`Admission`], on tokio's paused clock. Also with [`Penalties`], and with
//!   penalties for evictions.
//! - Eviction, weight by count: evicts the oldest handshake of the heaviest source as well, but the weight of a source
//!   is the number of its in-flight handshakes instead of their summed age.
//! - Random early drop: `MaxStartups 100:30:1000` of OpenSSH. With 100 handshakes in flight it rejects 30 % of new
//!   connections, with 1,000 all of them, and proportionally in between. With and without a limit for each source.
//!
//! The limit for each source is a quarter of the cap.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::oneshot;
use tower_challenge::HandshakeErrorKind;
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};

const CAP: usize = 1_000;
const SOURCE_LIMIT: usize = CAP / 4;
/// In microseconds, like all times here.
const SECOND: u64 = 1_000_000;
const DEADLINE: u64 = 10 * SECOND;
const DURATION: u64 = 60 * SECOND;
/// Legitimate handshakes are counted from here on, when the flood has its full effect.
const FROM: u64 = 30 * SECOND;
const LEGITIMATE_PER_SECOND: u64 = 50;
const PERIOD: u64 = 20 * SECOND;

/// Decides which handshakes may begin and which are evicted.
trait Policy {
    /// Returns whether a handshake from `source` may begin.
    fn arrive(&mut self, id: u64, source: Ipv4Addr, random: &mut Random) -> bool;
    /// Ends a handshake. Returns whether it was still in flight.
    fn leave(&mut self, id: u64, source: Ipv4Addr, outcome: Result<(), HandshakeErrorKind>) -> bool;
}

/// The admission control of the crate.
struct EvictionByAge {
    admission: Admission,
    in_flight: HashMap<u64, oneshot::Sender<Result<(), HandshakeErrorKind>>>,
}

impl EvictionByAge {
    fn new(builder: AdmissionBuilder) -> Self {
        let builder = builder.max_pending(CAP).max_per_source(SOURCE_LIMIT);
        Self { admission: builder.build().expect("valid settings"), in_flight: HashMap::new() }
    }
}

impl Policy for EvictionByAge {
    fn arrive(&mut self, id: u64, source: Ipv4Addr, _: &mut Random) -> bool {
        let Ok(mut slot) = self.admission.admit(Some(source.into())) else { return false };
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                () = slot.evicted() => Err(HandshakeErrorKind::Evicted),
                outcome = ended => outcome.unwrap_or(Ok(())),
            };
            match outcome {
                Ok(()) => slot.release(),
                Err(kind) => slot.failed(kind),
            }
        });
        self.in_flight.insert(id, end);
        true
    }

    fn leave(&mut self, id: u64, _: Ipv4Addr, outcome: Result<(), HandshakeErrorKind>) -> bool {
        self.in_flight.remove(&id).is_some_and(|end| end.send(outcome).is_ok())
    }
}

/// Eviction with the number of in-flight handshakes as the weight of a source.
#[derive(Default)]
struct EvictionByCount {
    // Ordered by age within each source.
    in_flight: HashMap<Ipv4Addr, BTreeSet<u64>>,
    len: usize,
}

impl Policy for EvictionByCount {
    fn arrive(&mut self, id: u64, source: Ipv4Addr, _: &mut Random) -> bool {
        let of_source = self.in_flight.entry(source).or_default();
        if of_source.len() >= SOURCE_LIMIT {
            return false;
        }
        of_source.insert(id);
        self.len += 1;
        if self.len > CAP {
            let weight = |of: &BTreeSet<u64>| (of.len(), of.first().copied().map(Reverse));
            let heaviest = self.in_flight.iter().max_by_key(|(_, of)| weight(of)).map(|(&source, _)| source);
            let heaviest = heaviest.expect("handshakes are in flight");
            let oldest = *self.in_flight[&heaviest].first().expect("the heaviest source has a handshake");
            self.leave(oldest, heaviest, Ok(()));
        }
        true
    }

    fn leave(&mut self, id: u64, source: Ipv4Addr, _: Result<(), HandshakeErrorKind>) -> bool {
        let Some(of_source) = self.in_flight.get_mut(&source) else { return false };
        let was_in_flight = of_source.remove(&id);
        if of_source.is_empty() {
            self.in_flight.remove(&source);
        }
        self.len -= usize::from(was_in_flight);
        was_in_flight
    }
}

/// A plain cap, optionally with random early drop from `begin` handshakes on.
struct EarlyDrop {
    begin: usize,
    source_limit: usize,
    by_source: HashMap<Ipv4Addr, usize>,
    len: usize,
}

impl EarlyDrop {
    fn new(begin: usize, source_limit: usize) -> Self {
        Self { begin, source_limit, by_source: HashMap::new(), len: 0 }
    }
}

impl Policy for EarlyDrop {
    fn arrive(&mut self, _: u64, source: Ipv4Addr, random: &mut Random) -> bool {
        let percent = match self.len {
            len if len >= CAP => 100,
            len if len < self.begin => 0,
            len => 30 + 70 * (len - self.begin) / (CAP - self.begin),
        };
        let of_source = self.by_source.entry(source).or_default();
        if *of_source >= self.source_limit || random.below(100) < percent as u64 {
            return false;
        }
        *of_source += 1;
        self.len += 1;
        true
    }

    fn leave(&mut self, _: u64, source: Ipv4Addr, _: Result<(), HandshakeErrorKind>) -> bool {
        *self.by_source.get_mut(&source).expect("it was admitted") -= 1;
        self.len -= 1;
        true
    }
}

/// A linear congruential generator, which returns the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Returns the time to the next of `per_second` independent arrivals.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the result need not be exact"
    )]
    fn gap(&mut self, per_second: u64) -> u64 {
        let uniform = (self.below(1 << 24) + 1) as f64 / (1_u64 << 24) as f64;
        (-uniform.ln() * SECOND as f64 / per_second as f64) as u64
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { legitimate: bool },
    Leaves { id: u64, source: Ipv4Addr, legitimate: bool, counts: bool },
}

struct Flood {
    name: &'static str,
    /// The connections per second, from all sources together.
    per_second: u64,
    sources: u64,
    /// The duration of a legitimate handshake, in microseconds.
    legitimate_takes: u64,
    /// How long the flood lasts in every 20 seconds, in microseconds.
    lasts: u64,
}

/// Returns the share of legitimate handshakes that succeed.
async fn simulate(flood: &Flood, policy: &mut dyn Policy) -> f64 {
    let mut random = Random(7);
    let arrivals = [true, false].map(|legitimate| Reverse((0, Event::Arrives { legitimate })));
    let mut events = BinaryHeap::from(arrivals);
    let (mut begun, mut succeeded, mut next_id, mut now) = (0_u32, 0_u32, 0, 0);
    while let Some(Reverse((time, event))) = events.pop()
        && time <= DURATION
    {
        tokio::time::advance(Duration::from_micros(time - now)).await;
        now = time;
        match event {
            Event::Leaves { id, source, legitimate, counts } => {
                let outcome = if legitimate { Ok(()) } else { Err(HandshakeErrorKind::TimedOut) };
                let was_in_flight = policy.leave(id, source, outcome);
                succeeded += u32::from(counts && was_in_flight);
            }
            Event::Arrives { legitimate } => {
                let (first, sources, stays, per_second) = if legitimate {
                    (0x0a00_0000, 20, flood.legitimate_takes, LEGITIMATE_PER_SECOND)
                } else {
                    (0xc000_0000, flood.sources, DEADLINE, flood.per_second)
                };
                let source = Ipv4Addr::from(first + u32::try_from(random.below(sources)).expect("few"));
                let counts = legitimate && (FROM..DURATION - stays).contains(&now);
                begun += u32::from(counts);
                next_id += 1;
                if policy.arrive(next_id, source, &mut random) {
                    let leaves = Event::Leaves { id: next_id, source, legitimate, counts };
                    events.push(Reverse((now + stays, leaves)));
                }
                let mut next = now + random.gap(per_second);
                if !legitimate && next % PERIOD >= flood.lasts {
                    next = next.next_multiple_of(PERIOD);
                }
                events.push(Reverse((next, Event::Arrives { legitimate })));
            }
        }
    }
    f64::from(succeeded) / f64::from(begun)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let flood = |name, sources, per_second, legitimate_takes| Flood {
        name,
        per_second,
        sources,
        legitimate_takes,
        lasts: PERIOD,
    };
    let floods = [
        flood("1 source, 1,000/s", 1, 1_000, 100_000),
        flood("100 sources, 1,000/s", 100, 1_000, 100_000),
        flood("10,000 sources, 1,000/s", 10_000, 1_000, 100_000),
        flood("10,000 sources, 5,000/s", 10_000, 5_000, 100_000),
        flood("10,000 sources, 20,000/s", 10_000, 20_000, 100_000),
        flood("the same, legitimate handshakes take 10 ms", 10_000, 20_000, 10_000),
        Flood {
            lasts: 4 * SECOND,
            ..flood("4 s of every 20 s, 1,000,000 sources, 20,000/s", 1_000_000, 20_000, 100_000)
        },
    ];
    println!(
        "Legitimate handshakes that succeed, of {LEGITIMATE_PER_SECOND} per second from 20 sources. Each takes 100 ms.\n"
    );
    println!(
        "| flood | plain cap | random early drop | and a source limit | eviction, weight by count \
         | eviction, weight by age | and penalties | and penalties for evictions |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let penalties = |penalties| Admission::builder().penalties(penalties);
    for flood in &floods {
        let policies: [&mut dyn Policy; 7] = [
            &mut EarlyDrop::new(CAP, usize::MAX),
            &mut EarlyDrop::new(CAP / 10, usize::MAX),
            &mut EarlyDrop::new(CAP / 10, SOURCE_LIMIT),
            &mut EvictionByCount::default(),
            &mut EvictionByAge::new(Admission::builder()),
            &mut EvictionByAge::new(penalties(Penalties::new())),
            &mut EvictionByAge::new(penalties(Penalties::new().evicted(Duration::from_secs(2)))),
        ];
        let mut line = format!("| {} |", flood.name);
        for policy in policies {
            let percent = 100.0 * simulate(flood, policy).await;
            write!(line, " {percent:.1} % |").expect("writing to a string does not fail");
        }
        println!("{line}");
    }
}
