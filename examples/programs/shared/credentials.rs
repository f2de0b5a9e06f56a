//! The flags for keys and mechanism of `server`, `client` and `observe`.

use std::env;
use std::fmt::Display;
use std::path::PathBuf;

use tower_challenge::mutual::Audience;
#[cfg(feature = "noise")]
use tower_challenge::noise;
use tower_challenge::{Key, KeyEntry, KeyFile};

use super::BoxError;
use super::key_file::{self, key_file};
use super::output::err;
use super::program::Stopping;

/// The end of `--help`.
pub(crate) const HELP: &str = "\
Keys:
  (umask 077; echo \"alice:$(openssl rand -hex 32)\" > keys)   makes a key file, for --key-file keys
  CHALLENGE_KEY   one-way and multiprocessing: the key as text, if there is no --key-file; at least 8 bytes";

/// The error of programs that were built without `noise`.
#[cfg(not(feature = "noise"))]
pub(crate) const WITHOUT_NOISE: &str = "--mechanism noise: this program was built without the feature `noise`; \
     add --features noise to `cargo run`";

/// The variable that holds one key as text.
const VARIABLE: &str = "CHALLENGE_KEY";

/// The key of the tutorial that the classic wire comes from. It is public.
const TUTORIAL_KEY: &str = "This is key!";

#[derive(clap::Args)]
pub(crate) struct Credentials {
    /// How the peers authenticate
    #[arg(long, value_enum, default_value = "mutual")]
    mechanism: Mechanism,

    /// The keys, one `id:hex` per line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Accept a key file that its group can read, as systemd and Kubernetes provide it
    #[arg(long)]
    allow_group_read: bool,

    /// mutual and noise: the name of the service, the same on both sides; an empty one stands for no name
    #[arg(long, value_name = "NAME", default_value = "example")]
    audience: String,

    /// noise: the cipher; on a server the only one that clients may choose [default: any on a server, aes-256-gcm on a
    /// client]
    #[arg(long, value_enum)]
    suite: Option<Suite>,

    /// multiprocessing: also speak to Python 3.11 and older, which knows only HMAC-MD5
    #[arg(long)]
    pub(crate) legacy_md5: bool,

    /// Speak the tutorial's protocol: one-way, with the tutorial's public key, on port 8888
    #[arg(long, conflicts_with_all = ["mechanism", "key_file"])]
    tutorial: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mechanism {
    /// Each side proves to the other that it holds the key
    Mutual,
    /// As mutual, and encrypts everything after it; needs `cargo run --features noise`
    Noise,
    /// The client proves itself to the server: 32 random bytes, HMAC-MD5, a verdict
    OneWay,
    /// The protocol of Python's `multiprocessing.connection`; each line is a message
    Multiprocessing,
}

impl Mechanism {
    /// Returns the name of a mechanism whose peers name their keys.
    fn with_key_ids(self) -> Option<&'static str> {
        match self {
            Self::Mutual => Some("mutual"),
            Self::Noise => Some("noise"),
            Self::OneWay | Self::Multiprocessing => None,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Suite {
    /// AES-256-GCM, for processors with AES instructions
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305, for processors without
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Credentials {
    pub(crate) fn mechanism(&self) -> Mechanism {
        if self.tutorial { Mechanism::OneWay } else { self.mechanism }
    }

    pub(crate) fn audience(&self) -> Result<Audience, BoxError> {
        if self.audience.is_empty() {
            Ok(Audience::unspecified())
        } else {
            key_file::audience(&self.audience)
        }
    }

    #[cfg(feature = "noise")]
    pub(crate) fn suite(&self) -> Option<noise::Suite> {
        self.suite.map(|suite| match suite {
            Suite::Aes256Gcm => noise::Suite::Aes256Gcm,
            Suite::ChaCha20Poly1305 => noise::Suite::ChaCha20Poly1305,
        })
    }

    /// Returns the key file, if that is where the keys come from.
    pub(crate) fn key_file(&self) -> Option<KeyFile> {
        self.key_file.as_deref().map(|path| key_file(path, self.allow_group_read))
    }

    /// Loads the keys, at least one.
    pub(crate) async fn load(&self, stopping: &mut Stopping) -> Result<Vec<KeyEntry>, BoxError> {
        if self.tutorial {
            err("warning: --tutorial uses the tutorial's key, which is public");
            return Ok(vec![KeyEntry::new("default", Key::new(TUTORIAL_KEY)?)?]);
        }
        if let Some(file) = self.key_file() {
            return key_file::read(file, stopping).await;
        }
        let text = env::var_os(VARIABLE);
        if let Some(mechanism) = self.mechanism.with_key_ids() {
            let is_set = text.is_some();
            let problem = format!("CHALLENGE_KEY has no key id, which {mechanism} needs");
            return Err(advise(if is_set { &problem } else { "no keys" }, "").into());
        }
        let text = text.ok_or_else(|| advise("no keys", ", or set CHALLENGE_KEY"))?;
        let text = text.into_string().map_err(|_| "CHALLENGE_KEY: not UTF-8; use a --key-file")?;
        let key = Key::from_text(text).map_err(|error| format!("{VARIABLE}: {error}"))?;
        Ok(vec![KeyEntry::new("default", key)?])
    }

    /// Adds to `error` where the keys come from.
    pub(crate) fn explain(&self, error: impl Display) -> String {
        match &self.key_file {
            Some(path) => format!("key file {}: {error}", path.display()),
            None if self.tutorial => format!("--tutorial: {error}"),
            None => format!("{VARIABLE}: {error}"),
        }
    }
}

/// Says how to make a key.
fn advise(problem: &str, alternative: &str) -> String {
    format!(
        "{problem}; make a key file with  (umask 077; echo \"alice:$(openssl rand -hex 32)\" > keys)\n\
         and run this again with  --key-file keys{alternative}"
    )
}
