//! `challenge-proxy`: a sidecar that puts an authenticated, encrypted connection in front of any TCP or Unix socket
//! service, from one shared key. See the README of this package.

#[cfg(not(unix))]
compile_error!("challenge-proxy needs Unix");

mod activation;
mod address;
mod admin;
mod args;
mod buffer;
mod capacity;
mod check;
mod client;
mod config;
mod direction;
mod keygen;
mod keys;
mod listener;
mod logging;
mod mode;
mod names;
mod proxy_header;
mod relay;
mod seconds;
mod server;
mod service;
mod session;
mod signals;
mod socket;
#[cfg(target_os = "linux")]
mod splice;
#[cfg(not(target_os = "linux"))]
#[path = "no_splice.rs"]
mod splice;
mod supervisor;
mod systemd;
mod target;
mod unsent;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use clap_complete::Shell;
use tokio::runtime::Runtime;
use tower_challenge::BoxError;
use tower_challenge::noise::Audience;

use self::activation::Activated;
use self::args::{Cli, Command, CommonArgs, Side};
use self::config::{Config, Service};

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Server { service, process } => run(Config::one(process, Service::Server(service))),
        Command::Client { service, process } => run(Config::one(process, Service::Client(service))),
        Command::Run { config } => Config::read(&config).and_then(run),
        Command::Check { config: Some(config), .. } => {
            Config::read(&config).and_then(|config| block_on(check::run(&config)))
        }
        Command::Check { side: Some(side), .. } => block_on(check::run(&match side {
            Side::Server { service, process } => Config::one(process, Service::Server(service)),
            Side::Client { service, process } => Config::one(process, Service::Client(service)),
        })),
        Command::Check { .. } => unreachable!("clap requires one of the two"),
        Command::Keygen { id, append } => keygen::run(&id, append.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => print_completions(shell),
    };
    ended.unwrap_or_else(|error| {
        // The reader may be gone.
        let _ = writeln!(io::stderr(), "error: {error}");
        ExitCode::FAILURE
    })
}

fn print_completions(shell: Shell) -> Result<ExitCode, BoxError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "challenge-proxy", &mut script);
    // The script for bash takes the hyphen in the name for the beginning of a subcommand in some places.
    let script = String::from_utf8(script)?.replace("challenge__subcmd__proxy", "challenge__proxy");
    io::stdout().write_all(script.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn run(config: Config) -> Result<ExitCode, BoxError> {
    let activated = Activated::from_env();
    let _guard = logging::init(&config.process);
    block_on(supervisor::run(config, activated))
}

fn block_on(program: impl Future<Output = Result<ExitCode, BoxError>>) -> Result<ExitCode, BoxError> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(program);
    // Does not wait for threads that read a file or resolve a name: a file system that hangs must not keep the program
    // from ending.
    runtime.shutdown_background();
    ended
}

/// Parses `--audience`.
///
/// Not a parser of clap, which prints the values that it rejects: one may be a key in the wrong place.
fn audience(args: &CommonArgs) -> Result<Audience, BoxError> {
    Audience::new(&*args.audience).map_err(|error| format!("--audience: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
