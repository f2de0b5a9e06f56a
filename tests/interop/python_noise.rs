//! The example programs with the reference implementation of the noise wire, a script on the Python package `noiseprotocol`.

use std::process::{Command, Output};

use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tower_challenge::noise::{self, Audience};
use tower_challenge::transport::{ChannelBinding, TransportInfo, WithInfo};
use tower_challenge::{Acceptor, HandshakeErrorKind, Key, KeyEntry, RefusalReason};

use crate::process::{Running, example, python_noise, run, stderr, stdout};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER_KEY: &str = "0f0e0d0c0b0a09080706050403020100";

/// The suites, as the example programs and the script name them.
const SUITES: [(&str, &str); 2] = [("aes-256-gcm", "1"), ("chacha20-poly1305", "2")];

/// The default of the example programs.
const AUDIENCE: &str = "example";

/// The script's line after the handshake.
const VERIFIED: &str = "the server holds the key\n";

fn key_file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("k1:{KEY}\nwrong:{OTHER_KEY}\n")).unwrap();
    file
}

fn reference(mode: &str, addr: &str, key: &str) -> Command {
    let mut script = python_noise();
    script.args([mode, addr, "k1", key, AUDIENCE]);
    script
}

/// Starts the reference as a server. Returns it with its address.
fn reference_server(args: &[&str]) -> (Running, String) {
    let mut server = Running::start(reference("listen", "127.0.0.1:0", KEY).args(args));
    let addr = server.line_with("listening on ").split_off("listening on ".len());
    (server, addr)
}

fn example_server(keys: &NamedTempFile, args: &[&str]) -> (Running, String) {
    let mut server = example("server");
    server.args(["--mechanism", "noise", "--listen", "127.0.0.1:0", "--key-file"]);
    let mut server = Running::start(server.arg(keys.path()).args(args));
    let addr = server.line_with("listening on").split_off("listening on ".len());
    (server, addr)
}

fn example_client(keys: &NamedTempFile, addr: &str, args: &[&str], input: &str) -> Output {
    let mut client = example("client");
    client.args(["--mechanism", "noise", "--connect", addr, "--key-file"]);
    run(client.arg(keys.path()).args(args), input)
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn test_vectors_are_those_of_the_reference() {
    let output = run(python_noise().arg("vectors"), "");
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checked_in: serde_json::Value = serde_json::from_str(include_str!("../vectors/noise.json")).unwrap();
    assert_eq!(printed, checked_in);
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_server_accepts_reference_client() {
    let keys = key_file();
    let (mut server, addr) = example_server(&keys, &["--echo"]);
    for (_, suite) in SUITES {
        let output = run(reference("connect", &addr, KEY).args(["--suite", suite]), "hello");
        assert_eq!(stdout(&output), format!("{VERIFIED}hello"), "{}", stderr(&output));
        assert!(output.status.success());
        let peer = server.line_with("accepted: key k1");
        let peer = peer.strip_suffix(" accepted: key k1").unwrap();
        assert_eq!(server.line(), format!("{peer} says: \"hello\""));
        assert_eq!(server.line(), format!("{peer} closed"));
    }
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_server_refuses_wrong_reference_clients() {
    let keys = key_file();
    let (mut server, addr) = example_server(&keys, &[]);
    let mismatch = "the proof does not match: wrong key, audience or channel binding (claimed key id \"k1\")";
    let unknown = "unknown key id (claimed key id \"k2\")";
    let binding =
        ["--binding", "tls-exporter:0707070707070707070707070707070707070707070707070707070707070707"];
    for (id, key, audience, args, reason) in [
        ("k1", OTHER_KEY, AUDIENCE, &[][..], mismatch),
        ("k1", KEY, "billing", &[], mismatch),
        ("k1", KEY, AUDIENCE, &binding, mismatch),
        ("k2", KEY, AUDIENCE, &[], unknown),
    ] {
        let mut client = python_noise();
        let output = run(client.args(["connect", &addr, id, key, audience]).args(args), "hello");
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains("PermissionError: refused"), "{}", stderr(&output));
        let line = server.line_with("refused");
        assert!(line.ends_with(&format!(" handshake refused: {reason}")), "{line}");
    }
}

/// The client has verified the server, and not yet proven itself.
#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_server_does_not_call_its_service_before_finish() {
    let keys = key_file();
    let (mut server, addr) = example_server(&keys, &["--echo"]);
    let output = run(reference("connect", &addr, KEY).args(["--fault", "finish"]), "hello");
    assert_eq!((stdout(&output), output.status.success()), (VERIFIED, false));
    let line = server.line_with("127.0.0.1");
    assert!(line.contains(" handshake refused: ") && line.ends_with("(claimed key id \"k1\")"), "{line}");
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_server_notices_truncation_and_tampering() {
    let keys = key_file();
    let (mut server, addr) = example_server(&keys, &["--echo"]);
    for (fault, end) in [
        (
            "drop",
            "the connection ended without a CLOSE: it was cut, or the peer did not shut the stream down",
        ),
        ("tamper", "a record does not open: it was changed, dropped, repeated or reordered on the way"),
    ] {
        let output = run(reference("connect", &addr, KEY).args(["--fault", fault]), "hello");
        // The server sends no CLOSE, either.
        assert!(!output.status.success());
        server.line_with("accepted: key k1");
        assert!(server.line().ends_with(" says: \"hello\""));
        let line = server.line();
        assert!(line.ends_with(&format!(" closed: {end}")), "{line}");
    }
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_client_connects_to_reference_server() {
    let keys = key_file();
    let (mut server, addr) = reference_server(&[]);
    for (suite, _) in SUITES {
        let output = example_client(&keys, &addr, &["--suite", suite], "hello\n");
        assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));
        assert!(output.status.success());
        assert_eq!((server.line(), server.line()), ("accepted".to_owned(), "closed".to_owned()));
    }
    for args in [&["--key-id", "wrong"][..], &["--audience", "billing"]] {
        let output = example_client(&keys, &addr, args, "hello\n");
        let error = format!("error: {addr}: handshake refused; the server's log says why\n");
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()));
        assert!(server.line().starts_with("failed: PermissionError: refused"));
    }
}

#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_client_notices_a_server_that_does_not_close() {
    let (mut server, addr) = reference_server(&["--fault", "drop"]);
    let output = example_client(&key_file(), &addr, &[], "hello\n");
    // What arrived is printed, and then that it may not be all.
    assert_eq!(stdout(&output), "hello\n");
    let error = format!(
        "error: {addr}: the connection ended without a CLOSE: it was cut, or the peer did not shut the stream down\n"
    );
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()));
    assert_eq!((server.line(), server.line()), ("accepted".to_owned(), "closed".to_owned()));
}

/// The client in the cookbook.
#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn example_server_accepts_documented_client() {
    let page = include_str!("../../docs/cookbook/python.md");
    let mut blocks = page.split("```python\n").skip(1).map(|block| block.split("```").next().unwrap());
    let client = blocks.find(|block| block.contains("NoiseConnection")).unwrap();
    let keys = key_file();
    let (mut server, addr) = example_server(&keys, &["--echo"]);
    let client = client.replace("8888", addr.rsplit(':').next().unwrap());
    let client = client.replace("'keys'", &format!("'{}'", keys.path().display()));
    let script = NamedTempFile::new().unwrap();
    std::fs::write(script.path(), client).unwrap();
    let output = run(Command::new(python_noise().get_program()).arg(script.path()), "");
    assert_eq!(stdout(&output), "b'hello'\n", "{}", stderr(&output));
    server.line_with("accepted: key k1");
    server.line_with(" closed");
}

/// More than all buffers hold, in both directions at once.
#[test]
#[ignore = "needs python3 with noiseprotocol"]
fn bulk_data_arrives_in_both_directions() {
    let input = format!("{}\n", "a long line".repeat(100)).repeat(4000);
    let keys = key_file();
    let (_server, addr) = example_server(&keys, &["--echo"]);
    for (_, suite) in SUITES {
        let output = run(reference("connect", &addr, KEY).args(["--suite", suite]), &input);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).strip_prefix(VERIFIED) == Some(&input));
    }

    let (_server, addr) = reference_server(&[]);
    for (suite, _) in SUITES {
        let output = example_client(&keys, &addr, &["--suite", suite], &input);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output) == input);
    }
}

#[tokio::test]
#[ignore = "needs python3 with noiseprotocol"]
async fn channel_binding_must_be_the_same() {
    let key = Key::from_hex(KEY).unwrap();
    let keys = noise::KeyRing::new([KeyEntry::new("k1", key).unwrap()]).unwrap();
    let server = noise::Server::new(keys, Audience::new(AUDIENCE).unwrap()).require_channel_binding();
    let acceptor = Acceptor::new(server);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    for (theirs, is_same) in [("tls-exporter:07", true), ("tls-exporter:08", false), ("tls-unique:07", false)]
    {
        let mut client = reference("connect", &addr, KEY);
        client.args(["--binding", theirs]);
        let client = tokio::task::spawn_blocking(move || run(&mut client, "hello"));
        let binding = ChannelBinding::new(ChannelBinding::TLS_EXPORTER, [7]).unwrap();
        let info = TransportInfo::new().channel_binding(binding);
        let stream = WithInfo::new(listener.accept().await.unwrap().0, info);
        match acceptor.accept(stream).await {
            Ok(mut stream) if is_same => {
                let mut received = String::new();
                stream.read_to_string(&mut received).await.unwrap();
                assert_eq!(received, "hello");
                stream.shutdown().await.unwrap();
            }
            Ok(_) => panic!("accepted with another channel binding"),
            Err(error) => {
                assert!(!is_same, "{error}");
                assert_eq!(error.kind(), HandshakeErrorKind::Refused);
                assert_eq!(error.refusal_reason(), Some(RefusalReason::ProofMismatch));
            }
        }
        let output = client.await.unwrap();
        assert_eq!(output.status.success(), is_same, "{}", stderr(&output));
    }
}
