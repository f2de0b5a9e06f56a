//! The example programs with an implementation of the noise wire in Node.js, after the Noise specification.

use std::path::Path;
use std::process::Command;

use tempfile::NamedTempFile;

use crate::process::{Running, example, run, stderr, stdout};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER_KEY: &str = "0f0e0d0c0b0a09080706050403020100";

/// The suites, as the example programs and the script name them.
const SUITES: [(&str, &str); 2] = [("aes-256-gcm", "1"), ("chacha20-poly1305", "2")];

fn node(args: &[&str]) -> Command {
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("node/noise.js")).args(args);
    node
}

fn key_file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("k1:{KEY}\nwrong:{OTHER_KEY}\n")).unwrap();
    file
}

/// More than all buffers hold.
fn input() -> String {
    format!("{}\n", "a long line".repeat(100)).repeat(4000)
}

#[test]
#[ignore = "needs node"]
fn test_vectors_match() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors/noise.json");
    let output = run(&mut node(&["check", vectors.to_str().unwrap()]), "");
    assert_eq!(stdout(&output), "7 rows match\n", "{}", stderr(&output));
}

#[test]
#[ignore = "needs node"]
fn example_server_accepts_node_client() {
    let keys = key_file();
    let mut server = example("server");
    server.args(["--mechanism", "noise", "--listen", "127.0.0.1:0", "--echo", "--key-file"]).arg(keys.path());
    let mut server = Running::start(&mut server);
    let addr = server.line_with("listening on").split_off("listening on ".len());
    for (_, suite) in SUITES {
        let output = run(&mut node(&["connect", &addr, "k1", KEY, "example", suite]), input());
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output) == input());
        server.line_with("accepted: key k1");
    }
    for (id, key, audience, reason) in [
        ("k1", OTHER_KEY, "example", "the proof does not match"),
        ("k1", KEY, "billing", "the proof does not match"),
        ("k2", KEY, "example", "unknown key id"),
    ] {
        let output = run(&mut node(&["connect", &addr, id, key, audience]), "hello");
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), "refused\n"));
        server.line_with(&format!("handshake refused: {reason}"));
    }
}

#[test]
#[ignore = "needs node"]
fn example_client_connects_to_node_server() {
    let keys = key_file();
    let mut server = Running::start(&mut node(&["listen", "127.0.0.1:0", "k1", KEY, "example"]));
    let addr = server.line_with("listening on ").split_off("listening on ".len());
    let client = |args: &[&str]| {
        let mut client = example("client");
        client.args(["--mechanism", "noise", "--connect", &addr, "--key-file"]).arg(keys.path()).args(args);
        run(&mut client, input())
    };
    for (suite, _) in SUITES {
        let output = client(&["--suite", suite]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output) == input());
        assert_eq!((server.line(), server.line()), ("accepted".to_owned(), "closed".to_owned()));
    }
    for args in [&["--audience", "billing"][..], &["--key-id", "wrong"]] {
        let output = client(args);
        let error = format!("error: {addr}: handshake refused; the server's log says why\n");
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()));
        assert!(server.line().starts_with("failed: refused: "));
    }
}
