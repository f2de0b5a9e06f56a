//! Repeats floods, key rotations and restarts for a long time, to find resources that are not released.

use std::time::{Duration, Instant};

use crate::experiments::{Outcome, expect_idle, must, server, unauthenticated};
use crate::legitimate::measure;
use crate::process::number;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to run
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// The time between two checks of the memory.
const ROUND: Duration = Duration::from_secs(10);

/// How much the resident memory may grow after the first rounds. The allocator keeps a varying amount.
const GROWTH: f64 = 8.0 * 1024.0 * 1024.0;

pub(crate) fn run(args: &Args) -> Outcome {
    println!("# soak: {} minutes of floods, rotations and shutdowns", args.minutes);
    let begin = Instant::now();
    let (mut server, mut addr) = server(500, 100, 2, &["--penalties"]);
    let before = server.ask("stats");
    let (mut connections, mut restarts, mut settled) = (0, 0, None);
    let mut round = 0_u32;
    while begin.elapsed() < Duration::from_secs(60 * args.minutes) {
        round += 1;
        let end = Instant::now() + ROUND;
        let behaviour = ["mixed", "silent", "linger", "hang-up"][round as usize % 4];
        let flood = unauthenticated(addr, 2_000, 500 * (1 + round % 4), &["--behaviour", behaviour]);
        while Instant::now() < end {
            let failed = measure(addr, 20).failed;
            connections += 20;
            must(
                failed == 0,
                format!("{failed} legitimate connections failed in a flood of the kind {behaviour}"),
            )?;
            server.ask("rotate");
        }
        // Restarts the server within the same process while the flood goes on.
        let ended = server.ask("restart");
        addr = server.line().parse().map_err(|error| format!("{error} after {ended:?}"))?;
        must(ended.starts_with("ended"), format!("the server did not end: {ended}"))?;
        restarts += 1;
        drop(flood);
        expect_idle(&mut server, &before)?;
        let stats = server.ask("stats");
        println!("{:>5} s, {behaviour}: {stats}; {ended}", begin.elapsed().as_secs());
        let resident = number(&stats, "rss");
        let first = *settled.get_or_insert(resident);
        // In the first rounds, each kind of flood occurs once.
        if round <= 4 {
            settled = Some(resident.max(first));
        } else {
            must(
                resident <= first + GROWTH,
                format!("resident memory grows: {first} bytes, now {resident}"),
            )?;
        }
    }
    println!("{connections} legitimate connections, none failed; {restarts} restarts");
    Ok(())
}
