//! Compares the mechanism `noise` with other ways to encrypt a stream: `snow`, which implements the same protocol, and TLS
//! 1.3 through `tokio-rustls`.
//!
//! ```text
//! cargo bench -p benches-compare --bench stream
//! cargo bench -p benches-compare --bench stream -- --quick
//! ```
//!
//! - handshakes in memory, both sides, and the refusal of a client without the key
//! - bulk transfer over TCP loopback, in writes of 64 KiB: the processor time of the process, user and system, and the
//!   throughput with a thread for each side
//! - ping-pong of 64 bytes
//! - the heap memory of a connection
//!
//! The candidates alternate many times, so that other work of the machine affects all of them. Compare the ratios, not
//! the absolute numbers. Before the measurement, each candidate must transfer data without a change. For Unix; the memory
//! is measured with glibc alone.

mod in_memory;
mod memory;
mod noise;
#[path = "../report.rs"]
mod report;
mod snow_stream;
mod tls;
mod transfer;
mod way;

use std::time::Duration;

use report::{Quartiles, print_instructions};
use transfer::{Candidate, Sample, Threads};

const MIB: usize = 1 << 20;

struct Effort {
    rounds: usize,
    /// The time of one measurement in memory.
    slice: Duration,
    /// The bytes of one bulk transfer.
    bulk: usize,
    pings: usize,
    connections: usize,
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    // `cargo test --benches` passes no `--bench` and does not optimize: everything runs once, without a report.
    let is_bench = has("--bench");
    let effort = match (is_bench, has("--quick")) {
        (false, _) => Effort { rounds: 1, slice: Duration::ZERO, bulk: MIB, pings: 10, connections: 10 },
        (true, true) => Effort {
            rounds: 5,
            slice: Duration::from_millis(50),
            bulk: 64 * MIB,
            pings: 2_000,
            connections: 1_000,
        },
        (true, false) => Effort {
            rounds: 31,
            slice: Duration::from_millis(100),
            bulk: 512 * MIB,
            pings: 10_000,
            connections: 2_000,
        },
    };
    // `-- bulk` and the like measure only this.
    let sections = ["memory", "handshakes", "bulk", "ping-pong"];
    let all = !sections.iter().any(|section| has(section));
    if is_bench {
        print_instructions();
    }
    if all || has("handshakes") {
        in_memory::measure(&effort, is_bench);
    }
    if all || has("bulk") || has("ping-pong") {
        let candidates = [
            Candidate::new("bare", way::Bare),
            Candidate::new("noise", noise::Noise::new()),
            Candidate::new("snow, default resolver", snow_stream::Snow::with_default_resolver()),
            Candidate::new("snow, ring", snow_stream::Snow::with_ring()),
            Candidate::new("tokio-rustls, aws-lc-rs", tls::Tls::with_aws_lc()),
            Candidate::new("tokio-rustls, ring", tls::Tls::with_ring()),
        ];
        if all || has("bulk") {
            bulk(&candidates, &effort, is_bench);
        }
        if all || has("ping-pong") {
            ping_pong(&candidates, &effort, is_bench);
        }
    }
    if all || has("memory") {
        memory::measure(effort.connections, is_bench);
    }
}

fn bulk(candidates: &[Candidate], effort: &Effort, is_bench: bool) {
    for (threads, name) in [(Threads::Two, "a thread for each side"), (Threads::One, "one thread")] {
        let samples = alternate(candidates, effort.rounds, |candidate| candidate.bulk(effort.bulk, threads));
        if is_bench {
            println!("\nbulk, {name}: processor time per byte, `noise` relative to");
            report(candidates, &samples, |own, other| own.processor / other.processor);
            println!("\nbulk, {name}: throughput, `noise` relative to");
            report(candidates, &samples, |own, other| other.elapsed / own.elapsed);
        }
    }
}

fn ping_pong(candidates: &[Candidate], effort: &Effort, is_bench: bool) {
    for (threads, name) in [(Threads::One, "one thread"), (Threads::Two, "a thread for each side")] {
        let samples =
            alternate(candidates, effort.rounds, |candidate| candidate.ping_pong(effort.pings, threads));
        if is_bench {
            println!("\nping-pong of 64 bytes, {name}: round trips per second, `noise` relative to");
            report(candidates, &samples, |own, other| other.elapsed / own.elapsed);
        }
    }
}

/// Measures the candidates in turn.
fn alternate(
    candidates: &[Candidate],
    rounds: usize,
    measure: impl Fn(&Candidate) -> Sample,
) -> Vec<Vec<Sample>> {
    let mut samples = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for (candidate, samples) in candidates.iter().zip(&mut samples) {
            samples.push(measure(candidate));
        }
    }
    samples
}

/// Prints the figures of the candidate `noise`, which is the second one, relative to the others.
fn report(candidates: &[Candidate], samples: &[Vec<Sample>], ratio: fn(&Sample, &Sample) -> f64) {
    let noise = &samples[1];
    for (candidate, samples) in candidates.iter().zip(samples) {
        let ratios: Vec<_> = noise.iter().zip(samples).map(|(own, other)| ratio(own, other)).collect();
        if candidate.name != "noise" {
            println!("{:<36} {}", candidate.name, Quartiles::of(&ratios));
        }
    }
}
