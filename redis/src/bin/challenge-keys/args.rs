use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Manages the keys of a fleet in Redis.
#[derive(Parser)]
#[command(name = "challenge-keys", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The store: redis://, rediss:// for TLS, or redis+unix://, with user and password if there are any
    #[arg(long, env = "CHALLENGE_REDIS", hide_env_values = true, value_name = "URL")]
    pub(crate) redis: String,

    /// The secret of the store: 64 hexadecimal digits and a line end. `init` makes it if it is not there
    #[arg(long, default_value = "key-encryption-key", value_name = "FILE")]
    pub(crate) key_encryption_key_file: PathBuf,

    /// The prefix of all names in Redis
    #[arg(long, default_value = "{tower-challenge}", value_name = "PREFIX")]
    pub(crate) prefix: String,

    /// Print results as JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  export CHALLENGE_REDIS=redis://redis.internal
  challenge-keys init
  challenge-keys add web1 > web1.keys          # the key file of the client web1
  challenge-keys rotate web1 --overlap 1h > web1.keys
  challenge-keys revoke web1
  challenge-keys status

Exit codes: 0 if it is done, 1 after an error, 2 if the command line is wrong.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Initializes an empty store
    Init {
        /// Derive the key of each id from the secret, and keep only revocations in Redis
        #[arg(long)]
        derived: bool,
    },
    /// Adds an id, and prints the line of its key
    Add { id: String },
    /// Adds a key to an id, and prints its line. The other keys of the id end after the overlap
    Rotate {
        id: String,

        /// How long the other keys stay valid, such as 30s, 10m, 1h or 2d
        #[arg(long, value_name = "TIME")]
        overlap: Span,
    },
    /// Revokes an id on all servers, and ends its sessions
    Revoke { id: String },
    /// Lists the ids, without keys
    List,
    /// Writes all keys that are valid now to a new key file
    Export { file: PathBuf },
    /// Sets the keys of the ids of a key file
    Import { file: PathBuf },
    /// Shows what each server has seen
    Status,
}

/// A time with a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a whole number and a unit: 30s, 10m, 1h or 2d";
        let unit = text.chars().next_back().ok_or(EXPECTED)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 60 * 60,
            'd' => 24 * 60 * 60,
            _ => return Err(EXPECTED),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| EXPECTED)?;
        number.checked_mul(seconds).map(|seconds| Self(Duration::from_secs(seconds))).ok_or(EXPECTED)
    }
}
