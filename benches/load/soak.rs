//! Everything at once, again and again: what grows, grows here.

use std::time::{Duration, Instant};

use crate::experiments::{Outcome, back_to_the_start, must, server, strangers};
use crate::honest::visit;
use crate::process::number;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// Between two looks at the memory.
const ROUND: Duration = Duration::from_secs(10);

/// How much more may be resident after all rounds than after the first two: what the allocator keeps varies a little.
const GROWTH: f64 = 8.0 * 1024.0 * 1024.0;

pub(crate) fn run(args: &Args) -> Outcome {
    println!("# soak: {} minutes of floods, rotations and shutdowns", args.minutes);
    let begin = Instant::now();
    let (mut server, mut addr) = server(500, 100, 2, &["--penalties"]);
    let before = server.ask("stats");
    let (mut visits, mut restarts, mut settled) = (0, 0, None);
    let mut round = 0_u32;
    while begin.elapsed() < Duration::from_secs(60 * args.minutes) {
        round += 1;
        let end = Instant::now() + ROUND;
        let behaviour = ["mixed", "silent", "linger", "hang-up"][round as usize % 4];
        let flood = strangers(addr, 2_000, 500 * (1 + round % 4), &["--behaviour", behaviour]);
        while Instant::now() < end {
            let visit = visit(addr, 20);
            visits += 20;
            must(
                visit.failed == 0,
                format!("{} honest peers were turned away by {behaviour}", visit.failed),
            )?;
            server.ask("rotate");
        }
        // With the flood still on: all of it ends, and it begins anew in the same process.
        let ended = server.ask("restart");
        addr = server.line().parse().map_err(|error| format!("{error} after {ended:?}"))?;
        must(ended.starts_with("ended"), format!("it did not end: {ended}"))?;
        restarts += 1;
        drop(flood);
        back_to_the_start(&mut server, &before)?;
        let stats = server.ask("stats");
        println!("{:>5} s, {behaviour}: {stats}; {ended}", begin.elapsed().as_secs());
        let resident = number(&stats, "rss");
        let first = *settled.get_or_insert(resident);
        // All kinds of flood have been here once.
        if round <= 4 {
            settled = Some(resident.max(first));
        } else {
            must(
                resident <= first + GROWTH,
                format!("resident memory grows: {first} bytes, now {resident}"),
            )?;
        }
    }
    println!("{visits} visits of an honest peer, none turned away; {restarts} shutdowns");
    Ok(())
}
