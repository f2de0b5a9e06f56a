//! A server under load, and the latency of a legitimate client meanwhile.
//!
//! ```text
//! cargo bench -p benches --bench load                     # all experiments
//! cargo bench -p benches --bench load -- --quick          # as in CI
//! cargo bench -p benches --bench load -- flood            # one of: flood, memory, share, bursts
//! cargo bench -p benches --bench load -- soak --minutes 60
//! ```
//!
//! The server and the unauthenticated peers are processes of their own, with their own file descriptors. The legitimate
//! client runs in the main process. Unauthenticated peers connect from many addresses of 127.0.0.0/8. Each experiment
//! states what must hold, and the program fails if it does not. The latency of a legitimate client is the time from
//! `connect` to the echo of a byte, including the handshake.

mod experiments;
mod legitimate;
mod process;
mod server;
mod soak;
mod unauthenticated;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    /// Take fewer samples and shorter runs
    #[arg(long, global = true)]
    quick: bool,

    // Cargo passes this to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,

    #[command(subcommand)]
    experiment: Option<Experiment>,
}

#[derive(Subcommand)]
enum Experiment {
    /// Fill the cap with silent peers that reconnect as soon as they are dropped
    Flood,
    /// Measure the memory of an in-flight handshake
    Memory,
    /// Attack from one source in several ways
    Share,
    /// Connect in bursts
    Bursts,
    /// Run floods, key rotations and restarts for a long time
    Soak(soak::Args),
    /// The process of the server
    #[command(hide = true)]
    Server(server::Args),
    /// The process of the unauthenticated peers
    #[command(hide = true)]
    Unauthenticated(unauthenticated::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // In reality, unauthenticated peers run on other machines and do not use the server's processor.
    match &args.experiment {
        Some(Experiment::Unauthenticated(_)) => process::pin(process::FIRST),
        // Inherits the processors of the main process, which started it.
        Some(Experiment::Server(_)) => {}
        _ => process::pin(process::OTHERS),
    }
    let outcome = match args.experiment {
        Some(Experiment::Server(args)) => return server::run(&args),
        Some(Experiment::Unauthenticated(args)) => return unauthenticated::run(&args),
        Some(Experiment::Soak(soak)) => soak::run(&soak),
        Some(Experiment::Flood) => experiments::flood(args.quick),
        Some(Experiment::Memory) => experiments::memory(),
        Some(Experiment::Share) => experiments::share(args.quick),
        Some(Experiment::Bursts) => experiments::bursts(args.quick),
        None => experiments::all(args.quick),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}
