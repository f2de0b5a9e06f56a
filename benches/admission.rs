//! Which part of the honest handshakes succeeds while strangers flood the server: shedding, as this crate does it,
//! beside OpenSSH's random early drop and a plain cap.
//!
//! ```text
//! cargo bench --bench admission
//! ```
//!
//! A simulation, not a measurement: arrivals and their ends in order of time, with a generator of its own, so that
//! every run prints the same. 1,000 may be pending, and silent strangers stay for 10 seconds, as long as they are
//! let.
//!
//! - Shedding is the real [`Admission`], on tokio's paused clock; also with [`Penalties`], and with penalties for
//!   being shed.
//! - By number: it too sheds the oldest of the largest source, but a source is as large as the number of its pending
//!   handshakes, and not as the time for which they have been pending.
//! - Random early drop is OpenSSH's `MaxStartups 100:30:1000`: from 100 pending on 30 of 100 newcomers are turned away,
//!   from 1,000 on all, and in proportion in between. With and without a share of a source.
//!
//! All who have shares have a quarter.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::oneshot;
use tower_challenge::HandshakeErrorKind;
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};

const CAP: usize = 1_000;
const SHARE: usize = CAP / 4;
/// In microseconds, as all times here.
const SECOND: u64 = 1_000_000;
const DEADLINE: u64 = 10 * SECOND;
const DURATION: u64 = 60 * SECOND;
/// Honest handshakes are counted once the flood has done its worst.
const FROM: u64 = 30 * SECOND;
const HONEST_PER_SECOND: u64 = 50;
const PERIOD: u64 = 20 * SECOND;

/// Who is let in, and who has to go.
trait Policy {
    /// Whether a handshake from there may begin.
    fn arrive(&mut self, id: u64, source: Ipv4Addr, random: &mut Random) -> bool;
    /// It has come to its end, a good one or not; whether it was still there.
    fn leave(&mut self, id: u64, source: Ipv4Addr, outcome: Result<(), HandshakeErrorKind>) -> bool;
}

/// The real one.
struct Shedding {
    admission: Admission,
    pending: HashMap<u64, oneshot::Sender<Result<(), HandshakeErrorKind>>>,
}

impl Shedding {
    fn new(builder: AdmissionBuilder) -> Self {
        Self { admission: builder.max_pending(CAP).max_per_source(SHARE).build(), pending: HashMap::new() }
    }
}

impl Policy for Shedding {
    fn arrive(&mut self, id: u64, source: Ipv4Addr, _: &mut Random) -> bool {
        let Ok(mut slot) = self.admission.admit(Some(source.into())) else { return false };
        let (leave, left) = oneshot::channel();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                () = slot.revoked() => Err(HandshakeErrorKind::Shed),
                outcome = left => outcome.unwrap_or(Ok(())),
            };
            if let Err(kind) = outcome {
                slot.failed(kind);
            }
        });
        self.pending.insert(id, leave);
        true
    }

    fn leave(&mut self, id: u64, _: Ipv4Addr, outcome: Result<(), HandshakeErrorKind>) -> bool {
        self.pending.remove(&id).is_some_and(|leave| leave.send(outcome).is_ok())
    }
}

/// The same, with the number of what is pending for a source's size.
#[derive(Default)]
struct ByNumber {
    // By age within each source.
    pending: HashMap<Ipv4Addr, BTreeSet<u64>>,
    len: usize,
}

impl Policy for ByNumber {
    fn arrive(&mut self, id: u64, source: Ipv4Addr, _: &mut Random) -> bool {
        let of_source = self.pending.entry(source).or_default();
        if of_source.len() >= SHARE {
            return false;
        }
        of_source.insert(id);
        self.len += 1;
        if self.len > CAP {
            let size = |of: &BTreeSet<u64>| (of.len(), of.first().copied().map(Reverse));
            let largest = self.pending.iter().max_by_key(|(_, of)| size(of)).map(|(&source, _)| source);
            let largest = largest.expect("there are some");
            let oldest = *self.pending[&largest].first().expect("the largest has some");
            self.leave(oldest, largest, Ok(()));
        }
        true
    }

    fn leave(&mut self, id: u64, source: Ipv4Addr, _: Result<(), HandshakeErrorKind>) -> bool {
        let Some(of_source) = self.pending.get_mut(&source) else { return false };
        let was_there = of_source.remove(&id);
        if of_source.is_empty() {
            self.pending.remove(&source);
        }
        self.len -= usize::from(was_there);
        was_there
    }
}

/// A cap, or random early drop before it is reached.
struct Dropping {
    begin: usize,
    share: usize,
    by_source: HashMap<Ipv4Addr, usize>,
    len: usize,
}

impl Dropping {
    fn new(begin: usize, share: usize) -> Self {
        Self { begin, share, by_source: HashMap::new(), len: 0 }
    }
}

impl Policy for Dropping {
    fn arrive(&mut self, _: u64, source: Ipv4Addr, random: &mut Random) -> bool {
        let percent = match self.len {
            len if len >= CAP => 100,
            len if len < self.begin => 0,
            len => 30 + 70 * (len - self.begin) / (CAP - self.begin),
        };
        let of_source = self.by_source.entry(source).or_default();
        if *of_source >= self.share || random.below(100) < percent as u64 {
            return false;
        }
        *of_source += 1;
        self.len += 1;
        true
    }

    fn leave(&mut self, _: u64, source: Ipv4Addr, _: Result<(), HandshakeErrorKind>) -> bool {
        *self.by_source.get_mut(&source).expect("it was let in") -= 1;
        self.len -= 1;
        true
    }
}

/// A linear congruential generator: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// The time to the next of so many a second, which know nothing of each other.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "neither is exact, nor has to be"
    )]
    fn gap(&mut self, per_second: u64) -> u64 {
        let uniform = (self.below(1 << 24) + 1) as f64 / (1_u64 << 24) as f64;
        (-uniform.ln() * SECOND as f64 / per_second as f64) as u64
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { honest: bool },
    Leaves { id: u64, source: Ipv4Addr, honest: bool, counts: bool },
}

/// So many connections a second in all, from so many sources; and how long an honest handshake takes.
struct Flood {
    name: &'static str,
    per_second: u64,
    sources: u64,
    honest_takes: u64,
    /// How long it lasts of every 20 seconds, in microseconds.
    lasts: u64,
}

/// Which part of the honest succeeds.
async fn simulate(flood: &Flood, policy: &mut dyn Policy) -> f64 {
    let mut random = Random(7);
    let arrivals = [true, false].map(|honest| Reverse((0, Event::Arrives { honest })));
    let mut events = BinaryHeap::from(arrivals);
    let (mut came, mut succeeded, mut next_id, mut now) = (0_u32, 0_u32, 0, 0);
    while let Some(Reverse((time, event))) = events.pop()
        && time <= DURATION
    {
        tokio::time::advance(Duration::from_micros(time - now)).await;
        now = time;
        match event {
            Event::Leaves { id, source, honest, counts } => {
                let outcome = if honest { Ok(()) } else { Err(HandshakeErrorKind::TimedOut) };
                let was_there = policy.leave(id, source, outcome);
                succeeded += u32::from(counts && was_there);
            }
            Event::Arrives { honest } => {
                let (first, sources, stays, per_second) = if honest {
                    (0x0a00_0000, 20, flood.honest_takes, HONEST_PER_SECOND)
                } else {
                    (0xc000_0000, flood.sources, DEADLINE, flood.per_second)
                };
                let source = Ipv4Addr::from(first + u32::try_from(random.below(sources)).expect("few"));
                let counts = honest && (FROM..DURATION - stays).contains(&now);
                came += u32::from(counts);
                next_id += 1;
                if policy.arrive(next_id, source, &mut random) {
                    events
                        .push(Reverse((now + stays, Event::Leaves { id: next_id, source, honest, counts })));
                }
                let mut next = now + random.gap(per_second);
                if !honest && next % PERIOD >= flood.lasts {
                    next = next.next_multiple_of(PERIOD);
                }
                events.push(Reverse((next, Event::Arrives { honest })));
            }
        }
    }
    f64::from(succeeded) / f64::from(came)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let flood = |name, sources, per_second, honest_takes| Flood {
        name,
        per_second,
        sources,
        honest_takes,
        lasts: PERIOD,
    };
    let floods = [
        flood("1 source, 1,000/s", 1, 1_000, 100_000),
        flood("100 sources, 1,000/s", 100, 1_000, 100_000),
        flood("10,000 sources, 1,000/s", 10_000, 1_000, 100_000),
        flood("10,000 sources, 5,000/s", 10_000, 5_000, 100_000),
        flood("10,000 sources, 20,000/s", 10_000, 20_000, 100_000),
        flood("the same, honest in 10 ms", 10_000, 20_000, 10_000),
        Flood {
            lasts: 4 * SECOND,
            ..flood("4 s of every 20 s, 1,000,000 sources, 20,000/s", 1_000_000, 20_000, 100_000)
        },
    ];
    println!("Honest handshakes of 100 ms that succeed, {HONEST_PER_SECOND} a second from 20 sources.\n");
    println!(
        "| flood | plain cap | random early drop | and a share | shedding by number | shedding | and penalties | also for being shed |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for flood in &floods {
        let policies: [&mut dyn Policy; 7] = [
            &mut Dropping::new(CAP, usize::MAX),
            &mut Dropping::new(CAP / 10, usize::MAX),
            &mut Dropping::new(CAP / 10, SHARE),
            &mut ByNumber::default(),
            &mut Shedding::new(Admission::builder()),
            &mut Shedding::new(Admission::builder().penalties(Penalties::new())),
            &mut Shedding::new(Admission::builder().penalties(Penalties::new().shed(Duration::from_secs(2)))),
        ];
        let mut line = format!("| {} |", flood.name);
        for policy in policies {
            let part = 100.0 * simulate(flood, policy).await;
            write!(line, " {part:.1} % |").expect("a string takes all");
        }
        println!("{line}");
    }
}
