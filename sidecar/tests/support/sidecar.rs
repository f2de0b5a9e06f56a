//! A running `challenge-proxy`, its key file and its log.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::process::Running;
use crate::support::service::Service;

/// Keys of 16 bytes.
pub(crate) const KEY: &str = "00112233445566778899aabbccddeeff";
pub(crate) const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100";

pub(crate) const MECHANISMS: [&str; 2] = ["noise", "mutual"];

/// Returns the command of the program.
pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_challenge-proxy"))
}

/// An event of the log.
#[derive(Debug)]
pub(crate) struct Event(Value);

impl Event {
    fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).unwrap_or_else(|_| panic!("the program prints {line:?}")))
    }

    pub(crate) fn message(&self) -> &str {
        self.text("message")
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_else(|| panic!("no {field} in {self:?}"))
    }

    pub(crate) fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no {field} in {self:?}"))
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.get(field).is_some()
    }
}

/// A running sidecar with the address of its service.
pub(crate) struct Sidecar {
    pub(crate) running: Running,
    pub(crate) addr: String,
    /// The address of the metrics, if it has one.
    admin: Option<String>,
    /// Events that came before one that was waited for: those of different tasks have no order.
    earlier: Vec<Event>,
    directory: TempDir,
}

impl Sidecar {
    pub(crate) fn server(target: &str, key: &str, args: &[&str]) -> Self {
        Self::start("server", target, key, args)
    }

    pub(crate) fn client(target: &str, key: &str, args: &[&str]) -> Self {
        Self::start("client", target, key, args)
    }

    fn start(side: &str, target: &str, key: &str, args: &[&str]) -> Self {
        Self::start_with(&|command| command, side, &["--target", target], key, args)
    }

    /// Starts a side with a command that was changed by `prepare`.
    pub(crate) fn start_with(
        prepare: &dyn Fn(Command) -> Command,
        side: &str,
        targets: &[&str],
        key: &str,
        args: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_key(&directory.path().join("keys"), key);
        let mut command = program();
        command.arg(side).args(targets).args(args).args(["--log-format", "json"]);
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--audience", "test")] {
            if !args.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.arg("--key-file").arg(directory.path().join("keys"));
        Self::spawn(prepare(command).stdin(Stdio::null()).stdout(Stdio::null()), directory, 1)
    }

    /// Starts this number of services of a configuration file. `addr` is the address of the first one.
    pub(crate) fn run(directory: TempDir, config: &Path, services: usize) -> Self {
        let mut command = program();
        command.arg("run").arg("--config").arg(config);
        Self::spawn(command.stdout(Stdio::null()), directory, services)
    }

    /// Starts a command, and waits until the services listen and their keys are watched.
    pub(crate) fn spawn(command: &mut Command, directory: TempDir, services: usize) -> Self {
        let running = Running::start_stderr(command);
        let mut sidecar = Self { running, addr: String::new(), admin: None, earlier: Vec::new(), directory };
        let (mut listening, mut watched) = (0, 0);
        // In any order.
        while listening < services || watched < services {
            let event = sidecar.next();
            match event.message() {
                "metrics and health check" => sidecar.admin = Some(event.text("address").to_owned()),
                "listening" => {
                    if listening == 0 {
                        event.text("address").clone_into(&mut sidecar.addr);
                    }
                    listening += 1;
                }
                "keys read" | "store loaded" => watched += 1,
                _ => {}
            }
        }
        sidecar
    }

    /// Returns the next event.
    pub(crate) fn next(&mut self) -> Event {
        Event::parse(&self.running.line())
    }

    /// Waits for the next event with this message.
    pub(crate) fn event(&mut self, message: &str) -> Event {
        self.event_in(&[message])
    }

    /// Waits for the next event with one of these messages.
    fn event_in(&mut self, messages: &[&str]) -> Event {
        let is_wanted = |event: &Event| messages.contains(&event.message());
        if let Some(at) = self.earlier.iter().position(is_wanted) {
            return self.earlier.remove(at);
        }
        loop {
            let event = self.next();
            if is_wanted(&event) {
                return event;
            }
            self.earlier.push(event);
        }
    }

    /// Returns the error of the next handshake that fails.
    pub(crate) fn failure(&mut self) -> String {
        self.event("handshake failed").text("error").to_owned()
    }

    /// Returns the end of the next session that ends.
    pub(crate) fn ended(&mut self) -> Event {
        self.event("session ended")
    }

    /// Returns the events until the program ends.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        self.running.rest().iter().map(|line| Event::parse(line)).collect()
    }

    /// The address of the metrics.
    pub(crate) fn admin(&self) -> &str {
        self.admin.as_deref().expect("started with --admin")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    /// Replaces the key in the file. Returns what the program logs about it.
    pub(crate) fn replace(&mut self, key: &str) -> Event {
        write_key(&self.key_file(), key);
        self.event_in(&["keys read", "keys unchanged"])
    }

    /// Removes all keys but one with another id. Returns what the program logs about it.
    pub(crate) fn revoke(&mut self) -> Event {
        write_line(&self.key_file(), &format!("bob:{OTHER_KEY}"));
        self.event("keys read")
    }
}

/// Replaces a key file by one with this key of `alice`.
pub(crate) fn write_key(path: &Path, key: &str) {
    write_line(path, &format!("alice:{key}"));
}

/// Replaces a file atomically: renames a new file over it.
pub(crate) fn write_line(path: &Path, line: &str) {
    let mut new = NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    writeln!(new, "{line}").unwrap();
    new.persist(path).unwrap();
}

/// Starts both sides between a client and an echo service.
pub(crate) fn pair(mechanism: &str, args: &[&str]) -> (Service, Sidecar, Sidecar) {
    let service = Service::start();
    let args = [&["--mechanism", mechanism], args].concat();
    let server = Sidecar::server(&service.addr, KEY, &args);
    let client = Sidecar::client(&server.addr, KEY, &args);
    (service, server, client)
}
