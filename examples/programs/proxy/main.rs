//! A sidecar that adds the mutual handshake to any TCP service and any TCP client, without a change to either.
//!
//! ```text
//! client ── plain ── proxy client ── handshake ── proxy server ── plain ── service
//!
//! proxy server --listen 0.0.0.0:9000   --target 127.0.0.1:6379 --key-file keys --audience redis
//! proxy client --listen 127.0.0.1:6379 --target db:9000        --key-file keys --audience redis
//! ```
//!
//! The two sides authenticate each other once per connection. Nothing is encrypted, so the channel between them must be
//! private.

mod client;
mod keys;
mod log;
mod run;
mod server;
#[path = "../shared/mod.rs"]
mod shared;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tower_challenge::mutual::Audience;
use tower_challenge::transport::SocketOptions;

use self::shared::BoxError;
use self::shared::admission::AdmissionArgs;
use self::shared::capacity::CapacityArgs;
use self::shared::key_file::audience;
use self::shared::program;
use self::shared::values::{host_port, seconds, target};

#[derive(Parser)]
#[command(name = "proxy", version, about = "Adds the mutual handshake to any TCP service or client")]
struct Cli {
    #[command(subcommand)]
    side: Side,
}

#[derive(Subcommand)]
enum Side {
    /// Authenticates the peers that connect, and forwards their connections to a plain service
    Server {
        #[command(flatten)]
        settings: Settings,

        #[command(flatten)]
        admission: AdmissionArgs,
    },
    /// Accepts plain connections, and forwards them to a server that it authenticates
    Client {
        #[command(flatten)]
        settings: Settings,

        /// The key of the key file to use, if not the first one
        #[arg(long, value_name = "ID")]
        key_id: Option<String>,
    },
}

/// The settings of both sides.
#[derive(Args)]
pub(crate) struct Settings {
    /// The address to listen on
    #[arg(long, value_name = "ADDR", value_parser = host_port)]
    listen: String,

    /// The address to connect to; a name is resolved again for each session
    #[arg(long, value_name = "ADDR", value_parser = target)]
    target: String,

    /// The keys, one `id:hex` per line; read again when the file changes
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,

    /// Accept a key file that its group can read, as systemd and Kubernetes provide it
    #[arg(long)]
    allow_group_read: bool,

    /// The name of the service, the same on both sides
    #[arg(long, value_name = "NAME")]
    audience: String,

    /// The deadline of a handshake, and of a connection to the target
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,

    /// How long sessions may continue after the first Ctrl-C or SIGTERM; a second one ends them at once
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    shutdown_timeout: Duration,

    /// How long a connection is idle before TCP checks whether its peer is still there, on both sides; 0 for never
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    keepalive: Duration,

    #[command(flatten)]
    capacity: CapacityArgs,
}

impl Settings {
    fn audience(&self) -> Result<Audience, BoxError> {
        audience(&self.audience)
    }

    fn socket_options(&self) -> SocketOptions {
        SocketOptions::new().keepalive(Some(self.keepalive).filter(|idle| !idle.is_zero()))
    }
}

fn main() -> ExitCode {
    program::run(async {
        match Cli::parse().side {
            Side::Server { settings, admission } => server::run_server(&settings, &admission).await,
            Side::Client { settings, key_id } => client::run_client(&settings, key_id.as_deref()).await,
        }
    })
}
