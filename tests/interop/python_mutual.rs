//! The example programs with the reference implementation of the mutual wire, a script in Python's standard library.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::process::{Running, example, python, run, stderr, stdout};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER_KEY: &str = "0f0e0d0c0b0a09080706050403020100";

fn key_file(lines: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    file
}

#[test]
#[ignore = "needs python3"]
fn test_vectors_are_those_of_the_reference() {
    let output = run(python("mutual.py").arg("vectors"), "");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checked_in: serde_json::Value = serde_json::from_str(include_str!("../vectors/mutual.json")).unwrap();
    assert_eq!(printed, checked_in);
}

#[test]
#[ignore = "needs python3"]
fn example_server_accepts_reference_client() {
    let keys = key_file(&format!("other:{OTHER_KEY}\nk1:{KEY}\n"));
    let mut server = Running::start(
        example("server")
            .args(["--mechanism", "mutual", "--audience", "orders", "--listen", "127.0.0.1:0", "--echo"])
            .arg("--key-file")
            .arg(keys.path()),
    );
    let addr = server.line_with("listening on").split_off("listening on ".len());
    let mismatch = "the proof does not match";
    for (id, key, audience, refused) in [
        ("k1", KEY, "orders", None),
        ("k1", OTHER_KEY, "orders", Some(mismatch)),
        ("unknown", KEY, "orders", Some("unknown key id")),
        ("k1", KEY, "billing", Some(mismatch)),
    ] {
        let output = run(python("mutual.py").args(["connect", &addr, id, key, audience]), "hello");
        if let Some(reason) = refused {
            assert!(stderr(&output).contains("PermissionError: refused"), "{}", stderr(&output));
            server.line_with(&format!("handshake refused: {reason}"));
        } else {
            assert!(stdout(&output).starts_with("accepted; export: "), "{}", stderr(&output));
            assert!(stdout(&output).ends_with("hello"));
            server.line_with("accepted: key k1");
        }
    }
}

#[test]
#[ignore = "needs python3"]
fn example_client_connects_to_reference_server() {
    let keys = key_file(&format!("k1:{KEY}\nwrong:{OTHER_KEY}\n"));
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = Running::start(python("mutual.py").args(["listen", &addr, "k1", KEY, "orders"]));
    let client = |args: &[&str]| {
        let mut client = example("client");
        client.args(["--mechanism", "mutual", "--connect", &addr, "--key-file"]).arg(keys.path()).args(args);
        run(&mut client, "hello\n")
    };
    // The script takes a moment until it listens.
    let start = Instant::now();
    while TcpStream::connect(&addr).is_err() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    server.line_with("refused: closed in the middle");

    let output = client(&["--audience", "orders"]);
    assert_eq!(stdout(&output), "hello\n", "{}", stderr(&output));
    server.line_with("accepted; export: ");
    for args in [&["--audience", "billing"][..], &["--audience", "orders", "--key-id", "wrong"]] {
        let output = client(args);
        let error = format!("error: {addr}: handshake refused; the server's log says why\n");
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()));
        assert_eq!(server.line(), "refused: refused");
    }
}
