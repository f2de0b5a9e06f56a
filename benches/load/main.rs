//! A server under load, and what an honest peer notices of it.
//!
//! ```text
//! cargo bench --bench load                     # all of it
//! cargo bench --bench load -- --quick          # what CI runs
//! cargo bench --bench load -- flood            # one of: flood, memory, share, bursts
//! cargo bench --bench load -- soak --minutes 60
//! ```
//!
//! Server and strangers are processes of their own, with file descriptors of their own; the honest peer is in this one.
//! Strangers come from many addresses of 127.0.0.0/8. Each experiment says what must hold, and the program fails if it
//! does not. An honest peer's time goes from its `connect` to the echo of a byte, handshake included.

mod experiments;
mod honest;
mod process;
mod server;
mod soak;
mod strangers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    /// Fewer samples, and shorter
    #[arg(long, global = true)]
    quick: bool,

    // What cargo passes to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,

    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// A full house of silent strangers who come again as soon as they are dropped, and an honest peer
    Flood,
    /// What a pending peer costs in memory
    Memory,
    /// One source that does all it can
    Share,
    /// Connections in bursts
    Bursts,
    /// All of it, with rotation of keys and restarts, for as long as is wanted
    Soak(soak::Args),
    /// The server's process
    #[command(hide = true)]
    Server(server::Args),
    /// The strangers' process
    #[command(hide = true)]
    Strangers(strangers::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Strangers have machines of their own, and do not get their work done by the server's processor.
    match &args.what {
        Some(What::Strangers(_)) => process::pin(process::FIRST),
        // As this process is, which has started it.
        Some(What::Server(_)) => {}
        _ => process::pin(process::OTHERS),
    }
    let outcome = match args.what {
        Some(What::Server(args)) => return server::run(&args),
        Some(What::Strangers(args)) => return strangers::run(&args),
        Some(What::Soak(soak)) => soak::run(&soak),
        Some(What::Flood) => experiments::flood(args.quick),
        Some(What::Memory) => experiments::memory(),
        Some(What::Share) => experiments::share(args.quick),
        Some(What::Bursts) => experiments::bursts(args.quick),
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
