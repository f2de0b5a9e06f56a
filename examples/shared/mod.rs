//! What `server` and `client` have in common: their flags for keys and mechanism, and what follows from those.

use std::error::Error;
use std::path::PathBuf;

use tower_challenge::mutual::Audience;
use tower_challenge::{Key, KeyEntry, KeyFile};

/// The key of the tutorial that the classic wire comes from. Everybody knows it.
const TUTORIAL_KEY: &str = "This is key!";

#[derive(clap::Args)]
pub(crate) struct Credentials {
    /// A file of keys, one `id:hex` a line. Without it, the environment variable `CHALLENGE_KEY` is one raw text key
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    /// How peers prove themselves
    #[arg(long, value_enum, default_value = "one-way")]
    pub(crate) mechanism: Mechanism,

    /// mutual: the service that the client means to reach; an empty one leaves it open
    #[arg(long, value_name = "NAME", required_if_eq("mechanism", "mutual"))]
    audience: Option<String>,

    /// multiprocessing: take part with Python up to 3.11, which has nothing better than MD5
    #[arg(long)]
    #[cfg(feature = "multiprocessing")]
    pub(crate) legacy_md5: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Mechanism {
    /// 32 random bytes, HMAC-MD5, a verdict: proves the client to the server
    OneWay,
    /// Each side proves to the other that it holds the key
    Mutual,
    /// What Python's `multiprocessing.connection` speaks; lines are messages then
    #[cfg(feature = "multiprocessing")]
    Multiprocessing,
}

impl Credentials {
    /// From the key file, else from the environment variable `CHALLENGE_KEY`, else the tutorial's.
    pub(crate) fn load(&self) -> Result<Vec<KeyEntry>, Box<dyn Error>> {
        if let Some(path) = &self.key_file {
            return Ok(KeyFile::new(path).read()?);
        }
        if self.mechanism == Mechanism::Mutual {
            return Err("mutual needs a --key-file".into());
        }
        let key = std::env::var_os("CHALLENGE_KEY").unwrap_or_else(|| {
            eprintln!(
                "warning: no --key-file and no CHALLENGE_KEY; using the tutorial's key, which is public"
            );
            TUTORIAL_KEY.into()
        });
        let key = key.into_string().map_err(|_| "CHALLENGE_KEY is not UTF-8; use a key file")?;
        Ok(vec![KeyEntry::new("default", Key::new(key)?)?])
    }

    pub(crate) fn audience(&self) -> Result<Audience, Box<dyn Error>> {
        match self.audience.as_deref() {
            None | Some("") => Ok(Audience::unspecified()),
            Some(name) => Ok(Audience::new(name)?),
        }
    }
}
