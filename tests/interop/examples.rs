//! The examples as a user runs them: processes of their own, over loopback.

mod key_files;
mod log;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use tempfile::NamedTempFile;

use crate::process::{Running, example, run, stderr, stdout, succeeds_and_says};

/// Keys of 32 bytes.
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER_KEY: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The key of `--tutorial`.
const TUTORIAL_KEY: &str = "This is key!";

/// The programs that load keys.
const PROGRAMS: [&str; 3] = ["server", "client", "example-observe"];

/// Starts a server on a free port. Returns it with its address.
fn server(args: &[&str]) -> (Running, String) {
    start(example("server").args(["--listen", "127.0.0.1:0"]).args(args))
}

fn start(command: &mut Command) -> (Running, String) {
    let mut server = Running::start(command);
    let addr = server.line_with("listening on ").split_off("listening on ".len());
    (server, addr)
}

fn client(addr: &str) -> Command {
    let mut client = example("client");
    client.args(["--connect", addr]);
    client
}

/// Writes a key file, which only its owner can read.
fn key_file(content: impl AsRef<str>) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content.as_ref()).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

fn assert_fails(output: &Output, error: &str) {
    assert_eq!((output.status.code(), stderr(output)), (Some(1), error));
    assert_eq!(stdout(output), "");
}

#[test]
fn quickstart_output() {
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

#[test]
fn tls_output() {
    succeeds_and_says(
        "example-tls",
        &[
            "client: handshake refused",
            "handshake timed out: in a step before the handshake",
            "WARNING: the man in the middle was not detected",
        ],
    );
}

#[test]
fn tutorial_server_and_client_talk() {
    let (mut server, addr) = server(&["--tutorial", "--echo"]);
    let output = run(client(&addr).arg("--tutorial"), "hello\n世界\nwithout an end");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "hello\n世界\nwithout an end");
    assert!(stderr(&output).contains("warning: "), "the tutorial's key is public");

    let accepted = server.line();
    let peer = accepted.strip_suffix(" accepted: key default").unwrap();
    assert!(server.line_with("says").starts_with(&format!("{peer} says: \"hello\\n")));
    assert_eq!(server.line_with("closed"), format!("{peer} closed"));

    server.interrupt();
    assert_eq!(server.line(), "stopped");
    assert!(server.wait().success());
}

/// The tutorial's wire, key and nothing else: a client with these settings spelled out talks to the server.
#[test]
fn tutorial_is_one_way_with_the_public_key() {
    let (_server, addr) = server(&["--tutorial", "--echo"]);
    let mut client = client(&addr);
    client.args(["--mechanism", "one-way"]).env("CHALLENGE_KEY", TUTORIAL_KEY);
    let output = run(&mut client, "hello\n");
    assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));

    // The variable does not override the flag, and other settings conflict with it.
    let output = run(client.arg("--tutorial"), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("'--mechanism <MECHANISM>' cannot be used with '--tutorial'"));
}

#[test]
fn tutorial_ignores_the_variable() {
    let (_server, addr) = server(&["--tutorial", "--echo"]);
    let output = run(client(&addr).arg("--tutorial").env("CHALLENGE_KEY", "another key"), "hello\n");
    assert_eq!(stdout(&output), "hello\n");
}

/// The echo is larger than all buffers between the two: a client that does not read would block forever.
#[test]
fn client_reads_while_it_writes() {
    let (_server, addr) = server(&["--tutorial", "--echo"]);
    let input = format!("{}\n", "a long line".repeat(100)).repeat(10_000);
    let output = run(client(&addr).arg("--tutorial"), &input);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout.len(), input.len());
}

#[test]
fn client_ends_when_the_server_is_silent() {
    let (mut server, addr) = server(&["--tutorial"]);
    let output = run(client(&addr).arg("--tutorial"), "hello\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    server.line_with("says: \"hello\\n\"");
}

/// Mutual is the default, with the same default audience on both sides.
#[test]
fn key_file_is_all_that_both_sides_need() {
    let keys = key_file(format!("alice:{KEY}\n"));
    let (mut server, addr) = server(&["--key-file", path(&keys), "--echo"]);
    let output = run(client(&addr).args(["--key-file", path(&keys)]), "hello\n");
    assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));
    server.line_with("accepted: key alice");

    // The audience in full, and none.
    let output = run(client(&addr).args(["--key-file", path(&keys), "--audience", "example"]), "hello\n");
    assert_eq!(stdout(&output), "hello\n");
    let output = run(client(&addr).args(["--key-file", path(&keys), "--audience", ""]), "hello\n");
    assert_eq!(output.status.code(), Some(1));
}

/// The server's log tells the reasons apart. The client learns none of them.
#[test]
fn refusals_are_told_apart_only_in_the_log() {
    let ours = key_file(format!("alice:{KEY}\n"));
    let wrong = key_file(format!("alice:{OTHER_KEY}\n"));
    let unknown = key_file(format!("mallory:{KEY}\n"));
    let (mut server, addr) = server(&["--key-file", path(&ours)]);
    let mismatch =
        "the proof does not match: wrong key, audience or channel binding (claimed key id \"alice\")";
    for (keys, audience, reason) in [
        (&wrong, "example", mismatch),
        (&ours, "billing", mismatch),
        (&unknown, "example", "unknown key id (claimed key id \"mallory\")"),
    ] {
        let output = run(client(&addr).args(["--key-file", path(keys), "--audience", audience]), "hello\n");
        let expected = format!("error: {addr}: handshake refused; the server's log says why\n");
        assert_fails(&output, &expected);
        let line = server.line_with("handshake refused");
        assert!(line.ends_with(&format!(" handshake refused: {reason}")), "{line}");
    }

    let mut http = TcpStream::connect(&addr).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let line = server.line_with("malformed");
    assert!(
        line.ends_with(" malformed handshake message: the peer speaks HTTP, this side `mutual`"),
        "{line}"
    );
}

#[test]
fn refusals_without_key_ids() {
    let (mut server, addr) = server(&["--tutorial"]);
    let wrong_key = |mechanism| {
        let mut client = client(&addr);
        client.args(["--mechanism", mechanism]).env("CHALLENGE_KEY", "open sesame");
        run(&mut client, "hello\n")
    };
    let refused = format!("error: {addr}: handshake refused; the server's log says why\n");
    assert_fails(&wrong_key("one-way"), &refused);
    let line = server.line_with("refused");
    assert!(line.ends_with(" handshake refused: the answer matches none of the keys"), "{line}");

    // Another mechanism: the first message of the server is not its.
    let output = wrong_key("multiprocessing");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with(&format!("error: {addr}: ")), "{}", stderr(&output));
}

#[test]
fn client_names_the_mechanism_of_the_server() {
    let keys = key_file(format!("alice:{KEY}\n"));
    let (_server, addr) = server(&["--key-file", path(&keys)]);
    for mechanism in ["one-way", "multiprocessing"] {
        let output =
            run(client(&addr).args(["--key-file", path(&keys), "--mechanism", mechanism]), "hello\n");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with(&format!("error: {addr}: ")), "{}", stderr(&output));
        assert!(stderr(&output).contains("the peer speaks the mechanism `mutual`"), "{}", stderr(&output));
    }
}

#[test]
fn silent_peer_times_out_and_disconnect_is_reported() {
    let (mut server, addr) = server(&["--tutorial", "--timeout", "0.2"]);
    let mut silent = TcpStream::connect(&addr).unwrap();
    silent.read_to_end(&mut Vec::new()).unwrap();
    server.line_with(" handshake timed out: the peer sent nothing");

    let mut short = TcpStream::connect(&addr).unwrap();
    short.write_all(b"a few bytes").unwrap();
    drop(short);
    server.line_with(" connection closed before the handshake completed");
}

#[cfg(unix)]
#[test]
fn key_file_for_one_way() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = key_file(format!("alice:{KEY}\nbob:{OTHER_KEY}\n"));
    let keys = ["--mechanism", "one-way", "--key-file", path(&file)];
    let (mut server, addr) = server(&[&keys[..], &["--echo"]].concat());
    let output = run(client(&addr).args(keys), "hello\n");
    assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));
    server.line_with("accepted: key alice");

    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
    for program in PROGRAMS {
        let output = run(example(program).args(keys), "");
        assert_eq!(output.status.code(), Some(1));
        let error = format!("error: key file {}: permissions 0644 are too open; run `chmod 600", path(&file));
        assert!(stderr(&output).starts_with(&error), "{}", stderr(&output));
    }
}

#[test]
fn mutual_with_a_key_file_that_changes() {
    let file = NamedTempFile::new().unwrap();
    let keys = |ids: &[&str]| {
        let lines: Vec<_> = ids.iter().map(|id| format!("{id}:00112233445566778899aabbccddee{id}")).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
    };
    keys(&["aa"]);
    let mutual = ["--mechanism", "mutual", "--audience", "orders", "--key-file", path(&file)];
    let (mut server, addr) = server(&[&mutual[..], &["--echo"]].concat());
    let talk = |args: &[&str]| run(client(&addr).args(mutual).args(args), "hello\n");
    assert_eq!(stdout(&talk(&[])), "hello\n");
    server.line_with("accepted: key aa");

    keys(&["aa", "bb"]);
    server.line_with("keys: 2");
    assert_eq!(stdout(&talk(&["--key-id", "bb"])), "hello\n");
    server.line_with("accepted: key bb");
    let error = format!("error: key file {}: no key with the id \"cc\" (--key-id)\n", path(&file));
    assert_fails(&talk(&["--key-id", "cc"]), &error);
    // A key that was passed by mistake is not printed.
    let error = "error: --key-id: the key id contains 32 or more hexadecimal digits in a row, like a key, and ids are \
                 not secret; choose another id\n";
    assert_fails(&talk(&["--key-id", KEY]), error);
}

#[test]
fn missing_key_explains_how_to_make_one() {
    for program in PROGRAMS {
        for (mechanism, end) in [
            (None, "--key-file keys\n"),
            (Some("mutual"), "--key-file keys\n"),
            (Some("noise"), "--key-file keys\n"),
            (Some("one-way"), "--key-file keys, or set CHALLENGE_KEY\n"),
            (Some("multiprocessing"), "--key-file keys, or set CHALLENGE_KEY\n"),
        ] {
            let mut command = example(program);
            command.args(mechanism.map(|mechanism| format!("--mechanism={mechanism}")));
            let output = run(&mut command, "");
            assert_eq!(output.status.code(), Some(1));
            let error = stderr(&output);
            assert!(error.starts_with("error: no keys; "), "{error}");
            assert!(
                error.contains("(umask 077; echo \"alice:$(openssl rand -hex 32)\" > keys)\n"),
                "{error}"
            );
            assert!(error.ends_with(end) && error.lines().count() == 2, "{error}");
            assert_eq!(stdout(&output), "");
        }
    }
}

#[test]
fn mechanisms_with_key_ids_do_not_use_the_variable() {
    for program in PROGRAMS {
        for (args, name) in [(&[][..], "mutual"), (&["--mechanism", "noise"], "noise")] {
            let output = run(example(program).args(args).env("CHALLENGE_KEY", "open sesame"), "");
            assert_eq!(output.status.code(), Some(1));
            let error = stderr(&output);
            let expected = format!("error: CHALLENGE_KEY has no key id, which {name} needs; ");
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.contains("--key-file keys"), "{error}");
        }
    }
}

#[test]
fn noise_with_a_key_file() {
    let file = key_file(format!("alice:{KEY}\n"));
    let noise = ["--mechanism", "noise", "--key-file", path(&file)];
    let (mut server, addr) = server(&[&noise[..], &["--echo"]].concat());
    let (observe, observe_addr) = start(example("example-observe").args(noise).args([
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ]));
    // The echo is larger than all buffers between the two.
    let input = format!("{}\n", "a long line".repeat(100)).repeat(3000);
    for addr in [&addr, &observe_addr] {
        for suite in [&[][..], &["--suite", "aes-256-gcm"], &["--suite", "chacha20-poly1305"]] {
            let output = run(client(addr).args(noise).args(suite), &input);
            assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
            assert!(stdout(&output) == input);
        }
    }
    drop(observe);
    server.line_with("accepted: key alice");
    let output = run(client(&addr).args(noise).args(["--audience", "billing"]), "hello\n");
    assert_fails(&output, &format!("error: {addr}: handshake refused; the server's log says why\n"));
    server.line_with(" handshake refused: the proof does not match: wrong key, audience or channel binding");
}

#[test]
fn server_allows_only_the_suite_that_it_is_given() {
    let file = key_file(format!("alice:{KEY}\n"));
    let noise = ["--mechanism", "noise", "--key-file", path(&file)];
    let chacha = ["--suite", "chacha20-poly1305"];
    let (mut server, addr) = server(&[&noise[..], &chacha, &["--echo"]].concat());
    let output = run(client(&addr).args(noise).args(chacha), "hello\n");
    assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));
    // The client's default is the other one.
    assert_fails(
        &run(client(&addr).args(noise), "hello\n"),
        &format!("error: {addr}: handshake refused; the server's log says why\n"),
    );
    server.line_with(" handshake refused: the client chose a suite that is not allowed");
}

/// A server that stops closes its sessions, and what a client sent before is still read.
#[cfg(unix)]
#[test]
fn noise_session_ends_cleanly_when_the_server_stops() {
    let file = key_file(format!("alice:{KEY}\n"));
    let noise = ["--mechanism", "noise", "--key-file", path(&file)];
    let (mut server, addr) = server(&[&noise[..], &["--echo"]].concat());
    let mut client = client(&addr);
    let client = client.args(noise).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    // Stays open: the client has more to send.
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    server.line_with(" says: \"hello\\n\"");
    server.terminate();
    let output = client.wait_with_output().unwrap();
    assert_eq!((stdout(&output), stderr(&output)), ("hello\n", ""));
    assert!(output.status.success());
    server.line_with(" closed");
    assert_eq!(server.line(), "stopped");
    assert!(server.wait().success());
    drop(stdin);
}

/// The default server speaks `mutual`: the client's HELLO is not an answer to its challenge.
#[test]
fn noise_client_of_another_mechanism_fails() {
    let file = key_file(format!("alice:{KEY}\n"));
    let (_server, addr) = server(&["--key-file", path(&file)]);
    let output = run(client(&addr).args(["--mechanism", "noise", "--key-file", path(&file)]), "hello\n");
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    assert!(stderr(&output).starts_with(&format!("error: {addr}: ")), "{}", stderr(&output));
    assert!(stderr(&output).contains("the peer speaks the mechanism `mutual`"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn unsuitable_text_keys_are_errors() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let unclean = "white space, a line end or an invisible character before or after the key; remove it";
    for program in PROGRAMS {
        for mechanism in ["one-way", "multiprocessing"] {
            for (key, problem) in [
                (&b""[..], "the key is empty; generate one with `openssl rand -hex 32`"),
                (b"swordfi", "the key is shorter than 8 bytes; generate one with `openssl rand -hex 32`"),
                (b" swordfish", unclean),
                (b"swordfish ", unclean),
                (b"swordfish\n", unclean),
                (b"swordfish\r\n", unclean),
                ("swordfish\u{a0}".as_bytes(), unclean),
                (b"        ", unclean),
                (b"swordfish\xff", "not UTF-8; use a --key-file"),
            ] {
                let mut command = example(program);
                command.args(["--mechanism", mechanism]).env("CHALLENGE_KEY", OsStr::from_bytes(key));
                assert_fails(&run(&mut command, ""), &format!("error: CHALLENGE_KEY: {problem}\n"));
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn sigterm_ends_servers() {
    let listen = ["--tutorial", "--listen", "127.0.0.1:0"];
    for (mut server, addr) in [
        start(example("server").args(listen)),
        start(example("example-observe").args(listen).args(["--metrics", "127.0.0.1:0"])),
    ] {
        // The server handles the signal from its first connection on.
        assert!(run(client(&addr).arg("--tutorial"), "").status.success());
        // Neither a session nor a handshake prevents the end.
        let mut in_flight = TcpStream::connect(&addr).unwrap();
        in_flight.read_exact(&mut [0; 32]).unwrap();
        server.terminate();
        server.line_with("stopped");
        assert!(server.wait().success());
        assert_eq!(in_flight.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn connect_error_names_address_and_cause() {
    let cause = TcpStream::connect("127.0.0.1:1").unwrap_err();
    let output = run(client("127.0.0.1:1").arg("--tutorial"), "");
    assert_eq!(output.status.code(), Some(1));
    let error = format!("error: cannot connect to 127.0.0.1:1: {cause}\n");
    assert!(stderr(&output).ends_with(&error), "{}", stderr(&output));
}

#[test]
fn listen_error_names_flag_address_and_cause() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let cause = TcpListener::bind(&addr).unwrap_err();
    for program in ["server", "example-observe"] {
        let output = run(example(program).args(["--tutorial", "--listen", &addr]), "");
        assert_eq!(output.status.code(), Some(1));
        let error = format!("error: --listen {addr}: {cause}\n");
        assert!(stderr(&output).ends_with(&error), "{}", stderr(&output));
    }
}

#[test]
fn invalid_values_name_the_flag() {
    for (program, flag, value) in [
        ("client", "--connect", "127.0.0.1"),
        ("client", "--connect", ":8888"),
        ("client", "--connect", "127.0.0.1:0"),
        ("server", "--listen", "127.0.0.1:http"),
        ("server", "--timeout", "soon"),
        ("server", "--exempt", "10.0.0.0/33"),
        ("server", "--max-sessions", "0"),
        ("example-observe", "--metrics", "127.0.0.1"),
        ("example-observe", "--exempt", "localhost"),
    ] {
        let output = run(example(program).args(["--tutorial", flag, value]), "");
        assert_eq!(output.status.code(), Some(2));
        let error = stderr(&output);
        assert!(error.starts_with(&format!("error: invalid value '{value}' for '{flag} <")), "{error}");
    }
}

#[test]
fn version_flag() {
    for program in ["server", "client"] {
        let output = run(example(program).arg("--version"), "");
        assert_eq!(stdout(&output), format!("{program} 0.1.0\n"));
    }
}
