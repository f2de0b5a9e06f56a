//! Whether the time that a server takes says anything about a secret, in the manner of dudect (Reparaz, Balasch,
//! Verbauwhede: "Dude, is my code constant time?", 2017).
//!
//! ```text
//! cargo bench --bench timing
//! cargo bench --bench timing -- --quick
//! ```
//!
//! Each experiment times two classes of input in random order and compares their means with Welch's t-test: over all
//! samples, and over the fastest of them only, as noise only ever makes slower. |t| of 4.5 or more is a difference that
//! chance does not make. The last one is a comparison that does leak: were it not caught, the others would prove nothing.
//!
//! All classes but those of "which key" are refused. A right answer is not compared with a wrong one: the verdict tells
//! them apart anyway, and what is computed for the one who is accepted takes time.

use std::fmt::Write as _;
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio_util::codec::{Decoder, Encoder as _};
use tower_challenge::mechanism::{Client, Context, Handshake, Input, Mechanism, Reject, Server, Start, Step};
use tower_challenge::mutual::Audience;
use tower_challenge::{Key, KeyEntry, KeyRing, multiprocessing, mutual, one_way};

/// dudect's bound.
const LEAK: f64 = 4.5;
/// Something else on the machine can look like a leak once, but not with fresh samples again and again.
const ATTEMPTS: usize = 3;
/// Prepared together, so that what prepares is out of the caches' and the predictors' way; few enough for the caches.
const BATCH: usize = 256;
/// How many of a thousand samples are kept, the fastest first.
const KEPT: [usize; 12] = [100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 1000];
/// More than a first-level cache holds prepared, and an attacker can choose among many.
const IDS: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum Class {
    A,
    B,
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    // `cargo test --benches` runs this too, but unoptimized code is not what is asked about.
    if !args.iter().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let bench = Bench { samples: if args.iter().any(|arg| arg == "--quick") { 40_000 } else { 400_000 } };
    let constant = [
        bench.mutual_wrong_byte(),
        bench.mutual_unknown_id(),
        bench.one_way_wrong_byte(),
        bench.one_way_which_key(),
        bench.multiprocessing_wrong_byte(),
    ];
    let control = bench.control();
    if constant.contains(&true) || !control { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

struct Bench {
    samples: usize,
}

impl Bench {
    fn mutual_wrong_byte(&self) -> bool {
        let (server, clients) = mutual_ring();
        self.leaks("mutual: first or last byte of the tag wrong", |class| {
            answered(&server, &clients[below(IDS)], Some(wrong_byte(class, 32)))
        }, |input| { refused(conclude(input)) })
    }
}
