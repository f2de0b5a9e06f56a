//! The settings: flags of the command line, and in the configuration file keys of the same names.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;

use crate::address::{ListenAddress, TargetAddress};
use crate::mode::Mode;
use crate::seconds::Seconds;

/// Puts an authenticated, encrypted connection in front of any TCP or Unix socket service, from one shared key.
#[derive(Parser)]
#[command(name = "challenge-proxy", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  challenge-proxy keygen web1 --append keys
  # on the host of the service, with the file `keys`
  challenge-proxy server --listen 0.0.0.0:9000 --target 127.0.0.1:6379 --key-file keys --audience redis
  # on the host of the client, with the same file
  challenge-proxy client --listen 127.0.0.1:6379 --target db:9000 --key-file keys --audience redis
  # several services from a file
  challenge-proxy run --config /etc/challenge-proxy.toml

Exit codes: 0 after a shutdown in time, and if `check` finds nothing; 1 after an error, after sessions were aborted by a
second signal, and if `check` finds something; 2 if the command line is wrong.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Authenticates the clients that connect, and forwards their connections to a plain service
    #[command(after_help = SERVER_EXAMPLE)]
    Server {
        #[command(flatten)]
        service: ServerArgs,

        #[command(flatten)]
        process: ProcessArgs,
    },
    /// Accepts plain connections, and forwards them to a server that it authenticates
    #[command(after_help = CLIENT_EXAMPLE)]
    Client {
        #[command(flatten)]
        service: ClientArgs,

        #[command(flatten)]
        process: ProcessArgs,
    },
    /// Runs the services of a configuration file
    #[command(after_help = CONFIG_EXAMPLE)]
    Run {
        /// The configuration, in TOML; read again on SIGHUP
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Checks the configuration: reads it and its keys, and resolves its addresses
    #[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
    Check {
        /// The configuration file to check
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,

        #[command(subcommand)]
        side: Option<Side>,
    },
    /// Makes a key and prints its line `id:hex`, or appends it to a key file
    Keygen {
        /// The id of the key
        #[arg(default_value = "default")]
        id: String,

        /// Append the line to this file, which is created with mode 0600
        #[arg(long, value_name = "FILE")]
        append: Option<PathBuf>,
    },
    /// Prints the completions for a shell
    Completions { shell: Shell },
}

const SERVER_EXAMPLE: &str = "\
Example:
  challenge-proxy server --listen 0.0.0.0:9000 --target /run/postgresql/.s.PGSQL.5432 \\
    --key-file /etc/challenge-proxy/keys --audience postgres --admin 127.0.0.1:9464";

const CLIENT_EXAMPLE: &str = "\
Example:
  challenge-proxy client --listen /run/postgres-proxy/.s.PGSQL.5432 --listen-mode 0660 --target db:9000 \\
    --key-file /etc/challenge-proxy/keys --key-id web1 --audience postgres";

const CONFIG_EXAMPLE: &str = "\
The names in the file are those of the flags of `server` and `client`:

  admin = \"127.0.0.1:9464\"

  [[server]]
  name = \"redis\"
  listen = \"0.0.0.0:9000\"
  target = \"127.0.0.1:6379\"
  key-file = \"/etc/challenge-proxy/redis.keys\"
  audience = \"redis\"

  [[client]]
  name = \"orders\"
  listen = \"/run/orders.sock\"
  target = [\"orders1:9000\", \"orders2:9000\"]
  key-file = \"/etc/challenge-proxy/orders.keys\"
  audience = \"orders\"";

/// The service that `check` checks.
#[derive(Subcommand)]
pub(crate) enum Side {
    /// Checks the flags of `server`
    Server {
        #[command(flatten)]
        service: ServerArgs,

        #[command(flatten)]
        process: ProcessArgs,
    },
    /// Checks the flags of `client`
    Client {
        #[command(flatten)]
        service: ClientArgs,

        #[command(flatten)]
        process: ProcessArgs,
    },
}

/// The settings of the process.
#[derive(Args, Clone, Debug, PartialEq)]
pub(crate) struct ProcessArgs {
    /// The address of the Prometheus metrics (/metrics) and the health check (/healthz). Do not expose it to the internet
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<ListenAddress>,

    /// The log level, or levels by target such as `info,tower_challenge=warn`
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: tracing_subscriber::filter::Targets,

    /// The form of the log on the standard error
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,

    /// How long sessions may continue after the first Ctrl-C or SIGTERM, in seconds; a second one ends them at once
    #[arg(long, default_value = "30", value_name = "SECONDS")]
    pub(crate) shutdown_timeout: Seconds,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// How the peers authenticate each other.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mechanism {
    /// Everything is encrypted, with forward secrecy
    Noise,
    /// Nothing is encrypted: for a private network or a tunnel
    Mutual,
}

/// The settings of both sides.
#[derive(Args, Clone, Debug, PartialEq)]
pub(crate) struct CommonArgs {
    /// The name of the service in the log and in metrics [default: the audience]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// The address to listen on: HOST:PORT, the path of a Unix socket, @NAME for an abstract one, or systemd[:NAME]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: ListenAddress,

    /// The mode of the Unix socket that is listened on
    #[arg(long, default_value = "0600", value_name = "MODE")]
    pub(crate) listen_mode: Mode,

    /// The address to connect to; a name is resolved for each session. Can be repeated: sessions take turns, and go on to
    /// the next target if one cannot be reached
    #[arg(long, value_name = "ADDR", required = true)]
    pub(crate) target: Vec<TargetAddress>,

    /// The name of the service that both sides agree on
    #[arg(long, value_name = "NAME")]
    pub(crate) audience: String,

    /// How the peers authenticate each other, the same on both sides
    #[arg(long, default_value = "noise", value_name = "MECHANISM")]
    pub(crate) mechanism: Mechanism,

    /// The deadline of a handshake, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    pub(crate) timeout: Seconds,

    /// The deadline of a connection to the target, all of its addresses together, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    pub(crate) connect_timeout: Seconds,

    /// End a session after this time without data in either direction, in seconds; 0 for never
    #[arg(long, default_value = "0", value_name = "SECONDS")]
    pub(crate) idle_timeout: Seconds,

    /// How long a connection is idle before TCP checks whether its peer is still there, in seconds; 0 for never
    #[arg(long, default_value = "60", value_name = "SECONDS")]
    pub(crate) keepalive: Seconds,

    /// Maximum number of sessions; further clients wait [default: 1024, or less if the limit of open files is low]
    #[arg(long, value_name = "N")]
    pub(crate) max_sessions: Option<NonZeroUsize>,

    /// Maximum number of in-flight handshakes [default: 1024 for a server, 64 for a client, or less if the limit of open
    /// files is low]
    #[arg(long, value_name = "N")]
    pub(crate) max_pending: Option<NonZeroUsize>,
}

/// The settings of a server.
#[derive(Args, Clone, PartialEq)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,

    /// The keys, one `id:hex` per line; read again when the file changes
    #[arg(long, value_name = "FILE", required_unless_present = "keys", conflicts_with = "keys")]
    pub(crate) key_file: Option<PathBuf>,

    /// Accept a key file that its group can read, as systemd and Kubernetes provide it
    #[arg(long)]
    pub(crate) allow_group_read: bool,

    /// The keys of a fleet in Redis, as `challenge-keys` manages them: redis://, rediss:// or redis+unix://, with user
    /// and password if there are any. With --penalties, these are shared, too
    #[arg(long, value_name = "URL", requires = "key_encryption_key_file")]
    pub(crate) keys: Option<String>,

    /// The secret of the store in Redis
    #[arg(long, value_name = "FILE", requires = "keys")]
    pub(crate) key_encryption_key_file: Option<PathBuf>,

    /// The prefix of all names in Redis
    #[arg(long, value_name = "PREFIX", default_value = "{tower-challenge}")]
    pub(crate) keys_prefix: String,

    /// Remember here which keys were revoked, so that a Redis that goes back to an older state is noticed after a restart
    #[arg(long, value_name = "FILE", requires = "keys")]
    pub(crate) state_file: Option<PathBuf>,

    /// Refuse new clients while Redis was not seen for this time, in seconds; 0 for never
    #[arg(long, default_value = "0", value_name = "SECONDS")]
    pub(crate) max_stale: Seconds,

    /// Require a PROXY protocol header (version 1 or 2) from these addresses, such as a load balancer's; can be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(crate) proxy_protocol_from: Vec<IpNet>,

    /// Send a PROXY protocol header to the target; version 2 has the key id in a TLV of type 0xE0
    #[arg(long, value_name = "VERSION")]
    pub(crate) send_proxy_protocol: Option<ProxyVersion>,

    /// How long sessions may continue after their key was removed from the key file, in seconds
    #[arg(long, default_value = "0", value_name = "SECONDS")]
    pub(crate) revoked_grace: Seconds,

    /// Maximum number of in-flight handshakes from one IPv4 address or IPv6 /64 while three quarters of all are in use
    /// [default: a quarter of all, at least 128]
    #[arg(long, value_name = "N")]
    pub(crate) max_per_source: Option<NonZeroUsize>,

    /// Refuse addresses for a while after too many failed handshakes
    #[arg(long)]
    pub(crate) penalties: bool,

    /// Exempt addresses from penalties and from --max-per-source; can be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(crate) exempt: Vec<IpNet>,
}

/// The settings of a client.
#[derive(Args, Clone, Debug, PartialEq)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,

    /// The file with the key, as `id:hex`; read again when the file changes
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: PathBuf,

    /// Accept a key file that its group can read, as systemd and Kubernetes provide it
    #[arg(long)]
    pub(crate) allow_group_read: bool,

    /// The key of the key file to use [default: the first one]
    #[arg(long, value_name = "ID")]
    pub(crate) key_id: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum ProxyVersion {
    V1,
    V2,
}

/// Parses a range of addresses, such as `10.0.0.0/8`, or one address.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|address: std::net::IpAddr| address.into());
    let prefix = text.parse().or_else(|_| address());
    prefix.map_err(|_| "expected an IP address or a range such as 10.0.0.0/8".to_owned())
}

impl CommonArgs {
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.audience)
    }
}

/// Without the URL of Redis, which may have a password.
impl fmt::Debug for ServerArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerArgs").field("common", &self.common).finish_non_exhaustive()
    }
}
