//! The examples as a person runs them: processes of their own, over loopback.
#![cfg(feature = "net")]

#[path = "support/process.rs"]
mod process;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use process::{Running, example, run, stderr, stdout, succeeds_and_says};

/// A server on a free port, and where it listens.
fn server(args: &[&str]) -> (Running, String) {
    let mut server = Running::start(example("server").args(["--listen", "127.0.0.1:0"]).args(args));
    let addr = server.line().strip_prefix("listening on ").expect("it says where").to_owned();
    (server, addr)
}

fn client(addr: &str) -> std::process::Command {
    let mut client = example("client");
    client.args(["--connect", addr]);
    client
}

#[cfg(feature = "mutual")]
#[test]
fn quickstart_succeeds_and_says_so() {
    succeeds_and_says(
        "quickstart",
        &[
            "the server says \"fine, thank you\"",
            "client: handshake refused",
            "handshake timed out",
            "got 35 bytes of challenge, then the server closed",
        ],
    );
}

#[cfg(all(feature = "mutual", feature = "rustls"))]
#[test]
fn tls_refuses_the_relay() {
    succeeds_and_says(
        "tls",
        &["client: handshake refused", "TLS: handshake timed out", "WARNING: the relay was let through"],
    );
}

#[test]
fn client_and_server_talk_and_the_server_tells() {
    let (mut server, addr) = server(&["--echo"]);
    let output = run(&mut client(&addr), "hello\n世界\nwithout an end");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "hello\n世界\nwithout an end");
    assert!(stderr(&output).contains("warning: "), "the tutorial's key is public");

    let connected = server.line();
    let peer = connected.strip_suffix(" connected").unwrap();
    assert_eq!(server.line(), format!("{peer} accepted: key default"));
    assert!(server.line_with("says").starts_with(&format!("{peer} says: \"hello\\n")));
    assert_eq!(server.line_with("closed"), format!("{peer} closed"));

    server.interrupt();
    assert_eq!(server.line(), "stopped");
    assert!(server.wait().success());
}

/// More than all buffers between the two hold: who writes without reading would wait for ever.
#[test]
fn a_client_reads_while_it_writes() {
    let (_server, addr) = server(&["--echo"]);
    let input = format!("{}\n", "a long line".repeat(100)).repeat(10_000);
    let output = run(&mut client(&addr), &input);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout.len(), input.len());
}

#[test]
fn a_client_goes_when_the_server_is_silent() {
    let (mut server, addr) = server(&[]);
    let output = run(&mut client(&addr), "hello\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    server.line_with("says: \"hello\\n\"");
}

#[test]
fn a_wrong_key_is_refused_and_told_so() {
    let (mut server, addr) = server(&["--echo"]);
    let output = run(client(&addr).env("CHALLENGE_KEY", "sesame"), "hello\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: handshake refused\n");
    assert_eq!(stdout(&output), "");
    assert!(server.line_with("refused").ends_with(" refused: handshake refused"));
}

#[test]
fn a_silent_peer_is_timed_out_and_one_that_disconnects_ends_quietly() {
    let (mut server, addr) = server(&["--timeout", "0.2"]);
    let mut silent = TcpStream::connect(&addr).unwrap();
    silent.read_to_end(&mut Vec::new()).unwrap();
    assert!(server.line_with("refused").ends_with("handshake timed out"));

    let mut short = TcpStream::connect(&addr).unwrap();
    short.write_all(b"a few bytes").unwrap();
    drop(short);
    assert!(server.line_with("refused").ends_with("peer closed before the handshake was over"));
}

#[test]
fn keys_from_a_file() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "alice:c0ffee\nbob:decaf0\n").unwrap();
    let path = file.path().to_str().unwrap();
    let (mut server, addr) = server(&["--echo", "--key-file", path]);
    let output = run(client(&addr).args(["--key-file", path]), "hello\n");
    assert_eq!(stdout(&output), "hello\n");
    assert_eq!(stderr(&output), "");
    assert!(server.line_with("accepted").ends_with("accepted: key alice"));

    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = run(client(&addr).args(["--key-file", path]), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
}

#[cfg(feature = "mutual")]
#[test]
fn mutual_with_a_key_file_that_changes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let keys = |ids: &[&str]| {
        let lines: Vec<_> = ids.iter().map(|id| format!("{id}:00112233445566778899aabbccddee{id}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
    };
    keys(&["aa"]);
    let mutual = ["--mechanism", "mutual", "--audience", "orders", "--key-file", &path];
    let mut server =
        Running::start(example("server").args(["--listen", "127.0.0.1:0", "--echo"]).args(mutual));
    let addr = server.line_with("listening on ").split_off("listening on ".len());
    let talk = |args: &[&str]| run(client(&addr).args(mutual).args(args), "hello\n");
    assert_eq!(stdout(&talk(&[])), "hello\n");
    server.line_with("accepted: key aa");

    keys(&["aa", "bb"]);
    server.line_with("2 keys");
    assert_eq!(stdout(&talk(&["--key-id", "bb"])), "hello\n");
    server.line_with("accepted: key bb");
    let output = talk(&["--key-id", "cc"]);
    assert_eq!(stderr(&output), "error: no key with the id cc\n");
}

#[cfg(feature = "mutual")]
#[test]
fn mutual_needs_a_key_file_and_an_audience() {
    let output = run(client("127.0.0.1:1").args(["--mechanism", "mutual", "--audience", "orders"]), "");
    assert_eq!(stderr(&output), "error: mutual needs a --key-file\n");
    let output = run(client("127.0.0.1:1").args(["--mechanism", "mutual"]), "");
    assert!(stderr(&output).contains("--audience"), "{}", stderr(&output));
}

#[test]
fn a_server_that_is_not_there() {
    let output = run(&mut client("127.0.0.1:1"), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no connection"), "{}", stderr(&output));
}
