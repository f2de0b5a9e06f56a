//! File descriptors: what the programs do within their limit, and without free ones.
#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;

use crate::process::{Running, example, run, set_descriptor_limit, stderr, stdout};

/// The key of `server --tutorial`.
const KEY: &str = "This is key!";

fn answer(nonce: &[u8]) -> [u8; 16] {
    let mac = Hmac::<Md5>::new_from_slice(KEY.as_bytes()).unwrap().chain_update(nonce);
    mac.finalize().into_bytes().into()
}

/// Answers the challenge and exchanges a message.
fn complete(client: &mut TcpStream, nonce: &[u8]) {
    client.write_all(&answer(nonce)).unwrap();
    client.write_all(b"hello\n").unwrap();
    let mut reply = [0; 12 + 6];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[12..], b"hello\n");
}

#[test]
fn pauses_without_descriptors_and_recovers() {
    let mut command = example("server");
    command.args(["--tutorial", "--listen", "127.0.0.1:0", "--timeout", "60", "--echo"]);
    let mut server = Running::start(&mut command);
    let addr = server.line_with("listening on ").split_off("listening on ".len());
    // At its start the server takes care that its descriptors suffice.
    set_descriptor_limit(server.id(), 40);

    let mut accepted = Vec::new();
    let mut queued = Vec::new();
    for _ in 0..60 {
        let mut client = TcpStream::connect(&addr).unwrap();
        // Without free descriptors, connections wait in the kernel's queue.
        client
            .set_read_timeout(Some(Duration::from_millis(if queued.is_empty() { 1_000 } else { 10 })))
            .unwrap();
        let mut nonce = [0; 32];
        match client.read_exact(&mut nonce) {
            Ok(()) => accepted.push((client, nonce)),
            Err(_) => queued.push(client),
        }
    }
    assert!(accepted.len() >= 20 && queued.len() >= 20, "{} and {}", accepted.len(), queued.len());

    let before = server.processor_time();
    sleep(Duration::from_secs(2));
    let used = server.processor_time().saturating_sub(before);
    assert!(used <= Duration::from_millis(100), "{used:?} in two seconds is more than a twentieth");

    // An accepted connection closes: the first in the queue takes its place within a second.
    drop(accepted.pop());
    let begin = Instant::now();
    let mut first = queued.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut nonce = [0; 32];
    first.read_exact(&mut nonce).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    complete(&mut first, &nonce);

    // None of the other connections is lost.
    for (client, nonce) in &mut accepted {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        complete(client, &nonce[..]);
    }
    drop(accepted);
    for mut client in queued {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.read_exact(&mut nonce).unwrap();
        complete(&mut client, &nonce);
    }
}

/// Returns the soft limit of a running program on open files.
fn soft_limit(program: &Running) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns `command` with these limits on its file descriptors.
fn with_limits(command: &Command, soft: usize, hard: usize) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={soft}:{hard}"));
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// The servers with the arguments that they need.
fn servers(key_file: &str) -> Vec<Command> {
    let keys = ["--audience", "test", "--listen", "127.0.0.1:0", "--key-file", key_file];
    let mut server = example("server");
    server.args(keys);
    let mut observe = example("example-observe");
    observe.args(keys).args(["--metrics", "127.0.0.1:0"]);
    vec![server, observe]
}

fn key_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "alice:00112233445566778899aabbccddeeff\n").unwrap();
    file
}

#[test]
fn soft_limit_is_raised() {
    let keys = key_file();
    for command in servers(keys.path().to_str().unwrap()) {
        let mut server = Running::start(&mut with_limits(&command, 256, 5_000));
        // Large enough for the defaults.
        assert!(server.line().starts_with("listening on "));
        assert_eq!(soft_limit(&server), 5_000);
    }
}

#[test]
fn defaults_fit_the_hard_limit() {
    let keys = key_file();
    for command in servers(keys.path().to_str().unwrap()) {
        let mut server = Running::start(&mut with_limits(&command, 1_024, 1_024));
        let line = server.line();
        let line = line.strip_prefix("the limit of 1024 open files allows ").unwrap();
        let counts: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [sessions, handshakes] = counts[..] else { panic!("{line}") };
        assert!(sessions >= 300 && handshakes >= 300, "{line}");
        let free = 1_024 - (sessions + handshakes);
        assert!((32..64).contains(&free), "{line}");
        server.line_with("listening on ");
    }
}

#[test]
fn too_low_limit_is_an_error_with_the_arithmetic() {
    let keys = key_file();
    for mut command in servers(keys.path().to_str().unwrap()) {
        let output = run(&mut with_limits(&command, 100, 100), "");
        let error = "error: 128 sessions and 128 in-flight handshakes need 288 file descriptors \
                     (128 x 1 + 128 x 1 + 32), but the limit is 100: raise the hard limit (`ulimit -Hn`), or lower \
                     --max-sessions or --max-pending\n";
        assert_eq!((output.status.code(), stderr(&output), stdout(&output)), (Some(1), error, ""));

        // With less of both it starts.
        let mut server = with_limits(&command, 100, 100);
        let mut server = Running::start(server.args(["--max-sessions", "20", "--max-pending", "20"]));
        assert!(server.line().starts_with("listening on "));

        // More than fits is an error, too.
        let output = run(command.args(["--max-sessions", "1000000000"]), "");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("error: 1000000000 sessions and "), "{}", stderr(&output));
    }
}
