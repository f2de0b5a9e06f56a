//! The log: its formats and levels, and a reader that does not read it.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::service::Service;
use crate::support::sidecar::{KEY, Sidecar, program, write_key};

#[test]
fn text_and_levels() {
    let service = Service::start();
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    for (args, present, absent) in [
        (&[][..], &["INFO", "listening", "session ended", "reason=completed"][..], &["DEBUG", "\u{1b}"][..]),
        (&["--log-level", "warn"], &[], &["INFO", "listening"]),
        (&["--log-level", "warn,tower_challenge=debug"], &["handshake succeeded"], &["listening"]),
        (&["--log-level", "off"], &[], &["listening", "session"]),
    ] {
        let path = directory.path().join("socket");
        let server = Sidecar::server(&service.addr, KEY, &[]);
        let mut sidecar = program();
        sidecar.args(["client", "--target", &server.addr, "--audience", "test", "--listen"]).arg(&path);
        sidecar.arg("--key-file").arg(&keys).args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = sidecar.spawn().unwrap();
        let begin = Instant::now();
        let stream = loop {
            match std::os::unix::net::UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => assert!(begin.elapsed() < Duration::from_secs(20)),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = String::new();
        (&stream).read_to_string(&mut received).unwrap();
        assert_eq!(received, "ready\n0 bytes");
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let mut log = String::new();
        child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(present.iter().all(|part| log.contains(part)), "{args:?}: {log}");
        assert!(!absent.iter().any(|part| log.contains(part)), "{args:?}: {log}");
    }
}

/// A full pipe does not stop the program, and neither does a reader that is gone.
#[test]
fn serves_without_reader() {
    let service = Service::start();
    let target = Sidecar::server(&service.addr, KEY, &[]);
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    for closes in [false, true] {
        let path = directory.path().join("socket");
        let mut command = program();
        // Long lines, so that the pipe is full soon.
        command.args(["client", "--target", &target.addr, "--audience", "test", "--listen"]).arg(&path);
        command.args(["--log-level", "trace", "--name", &"n".repeat(2_000), "--key-file"]).arg(&keys);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pipe = child.stderr.take().unwrap();
        let pipe = if closes { None } else { Some(pipe) };
        let begin = Instant::now();
        while !path.exists() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..100 {
            let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut received = String::new();
            (&stream).read_to_string(&mut received).unwrap();
            assert_eq!(received, "ready\n0 bytes");
        }
        let begin = Instant::now();
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
        assert!(child.wait().unwrap().success(), "closes: {closes}");
        assert!(begin.elapsed() < Duration::from_secs(5), "ended after {:?}", begin.elapsed());
        drop(pipe);
    }
}

/// Commands that print have an exit code instead.
#[test]
fn errors_without_reader_are_exit_codes() {
    let closed = || {
        let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        let pipe = reader.stdin.take().unwrap();
        reader.wait().unwrap();
        pipe
    };
    for args in [
        &[
            "server",
            "--listen",
            "127.0.0.1:0",
            "--target",
            "a:1",
            "--audience",
            "a",
            "--key-file",
            "/nonexistent",
        ][..],
        &["run", "--config", "/nonexistent"],
        &["check", "--config", "/nonexistent"],
        &["keygen"],
        &["keygen", "--append", "/nonexistent/keys"],
    ] {
        let status = program().args(args).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}");
    }
}
