//! A sidecar that puts the mutual handshake in front of any TCP service, and behind any TCP client, that knows
//! nothing of it.
//!
//! ```text
//! client ── plain ── proxy client ── handshake ── proxy server ── plain ── service
//!
//! proxy server --listen 0.0.0.0:9000   --target 127.0.0.1:6379 --key-file keys --audience redis
//! proxy client --listen 127.0.0.1:6379 --target db:9000        --key-file keys --audience redis
//! ```
//!
//! It proves who the peer is, once, and encrypts nothing: between the two belongs a channel that is private.

mod client;
mod keys;
mod limits;
mod log;
mod run;
#[path = "../shared/seconds.rs"]
mod seconds;
mod server;
mod signals;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tower_challenge::mutual::Audience;
use tower_challenge::{KeyFile, KeyId};

use self::limits::Limits;
use self::seconds::seconds;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Puts the mutual handshake in front of, or behind, any TCP service")]
struct Cli {
    #[command(subcommand)]
    side: Side,
}

#[derive(Subcommand)]
enum Side {
    /// Challenges who connects, and hands those who hold a key on to a plain service
    Server(Settings),
    /// Accepts plain connections, and hands them on to a server that has proven itself
    Client {
        #[command(flatten)]
        settings: Settings,

        /// Which key of the key file to use; the first unless said
        #[arg(long, value_name = "ID")]
        key_id: Option<KeyId>,
    },
}

/// What both sides are told.
#[derive(Args)]
pub(crate) struct Settings {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    listen: String,

    /// Where to connect to, for each session anew
    #[arg(long, value_name = "ADDR")]
    target: String,

    /// The keys, one `id:hex` a line; read again when the file changes
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,

    /// The service that is meant, the same on both sides
    #[arg(long, value_name = "NAME", value_parser = |name: &str| Audience::new(name))]
    audience: Audience,

    /// How long a handshake may take, and a connection to the target
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,

    /// How long sessions may go on after the first Ctrl-C or SIGTERM; a second one ends them at once
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    shutdown_timeout: Duration,

    #[command(flatten)]
    limits: Limits,
}

impl Settings {
    fn key_file(&self) -> KeyFile {
        KeyFile::new(&self.key_file)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().side {
        Side::Server(settings) => server::run_server(settings).await,
        Side::Client { settings, key_id } => client::run_client(settings, key_id).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
