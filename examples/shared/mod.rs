//! What `server` and `client` have in common: where the keys come from, and which mechanisms there are.

use std::error::Error;
use std::path::PathBuf;

use tower_challenge::{Key, KeyEntry, KeyFile};

/// The key of the tutorial that the classic wire comes from. Everybody knows it.
const TUTORIAL_KEY: &str = "This is key!";

#[derive(clap::Args)]
pub(crate) struct Keys {
    /// A file of keys, one `id:hex` a line. Without it, the environment variable `CHALLENGE_KEY` is one raw text key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mechanism {
    /// 32 random bytes, HMAC-MD5, a verdict: proves the client to the server
    OneWay,
}

impl Keys {
    /// From the key file, else from the environment variable `CHALLENGE_KEY`, else the tutorial's.
    pub(crate) fn load(&self) -> Result<Vec<KeyEntry>, Box<dyn Error>> {
        if let Some(path) = &self.key_file {
            return Ok(KeyFile::new(path).read()?);
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
}
