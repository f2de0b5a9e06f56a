//! The two sides of the example `proxy`, each with its own key file.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::{NamedTempFile, TempDir};

use crate::process::{Running, example};

/// Keys of 16 bytes.
pub const KEY: &str = "00112233445566778899aabbccddeeff";
pub const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100";

/// A running proxy with its address and its key file.
pub struct Proxy {
    pub running: Running,
    pub addr: String,
    directory: TempDir,
}

impl Proxy {
    pub fn server(target: &str, key: &str, args: &[&str]) -> Self {
        Self::start("server", target, key, args)
    }

    pub fn client(target: &str, key: &str, args: &[&str]) -> Self {
        Self::start("client", target, key, args)
    }

    fn start(side: &str, target: &str, key: &str, args: &[&str]) -> Self {
        Self::start_with(&|command| command, side, target, key, args)
    }

    /// Starts a side with a command that was changed by `prepare`.
    pub fn start_with(
        prepare: &dyn Fn(Command) -> Command,
        side: &str,
        target: &str,
        key: &str,
        args: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        replace(directory.path(), key);
        let mut command = example("proxy");
        command.args([side, "--listen", "127.0.0.1:0", "--target", target]).args(args);
        if !args.contains(&"--audience") {
            command.args(["--audience", "test"]);
        }
        command.arg("--key-file").arg(key_file(directory.path()));
        let mut running = Running::start(&mut prepare(command));
        // The two lines arrive in any order.
        let mut addr = None;
        let mut keys = false;
        while addr.is_none() || !keys {
            let line = running.line();
            keys |= line == "keys: 1";
            addr = addr.or(line.strip_prefix("listening on ").map(str::to_owned));
        }
        Self { running, addr: addr.expect("the address was printed"), directory }
    }

    pub fn key_file(&self) -> PathBuf {
        key_file(self.directory.path())
    }

    /// Replaces the key in the file. Returns the line that the program prints about it.
    pub fn replace(&mut self, key: &str) -> String {
        replace(self.directory.path(), key);
        self.running.line_with("keys: ")
    }
}

fn key_file(directory: &Path) -> PathBuf {
    directory.join("keys")
}

/// Replaces the key file atomically: renames a new file over it.
fn replace(directory: &Path, key: &str) {
    let mut new = NamedTempFile::new_in(directory).unwrap();
    writeln!(new, "alice:{key}").unwrap();
    new.persist(key_file(directory)).unwrap();
}
