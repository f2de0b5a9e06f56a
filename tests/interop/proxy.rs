//! The two sides of the example `proxy`, as processes of their own, with a plain service as the target.
#![cfg(unix)]

mod burst;
mod keep_alive;
mod probes;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::process::{example, run, stderr};
use crate::proxy_pair::{KEY, OTHER_KEY, Proxy};

/// What the server logs about a wrong key or audience.
const MISMATCH: &str = concat!(
    " handshake refused: the proof does not match: wrong key, audience or channel binding",
    " (claimed key id \"alice\")"
);

/// What the server logs about an HTTP client.
const HTTP: &str = " malformed handshake message: the peer speaks HTTP, this side `mutual`";

/// A service that sends the first message, echoes its input, and sends the number of bytes at the end.
struct Service {
    addr: String,
    connections: Arc<AtomicUsize>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::Relaxed);
                // Some tests break the connection on purpose.
                thread::spawn(move || session(stream.unwrap()).unwrap_or_default());
            }
        });
        Self { addr, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn session(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"ready\n")?;
    let echoed = io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.write_all(format!("{echoed} bytes").as_bytes())
}

/// Connects like a program without a handshake.
fn connect(addr: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    BufReader::new(stream)
}

/// Connects and reads the first message of the service.
fn open(addr: &str) -> BufReader<TcpStream> {
    let mut stream = connect(addr);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    stream
}

/// Sends `bytes` and reads their echo.
fn echo(stream: &mut BufReader<TcpStream>, bytes: &[u8]) {
    stream.get_mut().write_all(bytes).unwrap();
    let mut received = vec![0; bytes.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
}

/// Closes the write side and reads to the end.
fn finish(stream: &mut BufReader<TcpStream>) -> String {
    stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

/// Asserts that a client receives no byte: the connection is closed, or reset if the client has sent something.
fn assert_closed_without_a_byte(addr: &str) {
    let mut received = Vec::new();
    let ended = connect(addr).read_to_end(&mut received);
    assert!(ended.is_ok() || ended.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
    assert_eq!(received, b"");
}

fn pair(args: &[&str]) -> (Service, Proxy, Proxy) {
    let service = Service::start();
    let server = Proxy::server(&service.addr, KEY, args);
    let client = Proxy::client(&server.addr, KEY, args);
    (service, server, client)
}

#[test]
fn forwards_half_close() {
    let (service, mut server, mut client) = pair(&[]);
    let mut stream = open(&client.addr);
    echo(&mut stream, b"hello");
    // The service sees the end, and its reply after it arrives: only one direction was closed.
    assert_eq!(finish(&mut stream), "5 bytes");
    assert_eq!(service.connections(), 1);

    let line = server.running.line();
    let (peer, opened) = line.split_once(' ').unwrap();
    assert_eq!(opened, "opened: key alice");
    assert_eq!(server.running.line(), format!("{peer} closed: 5 bytes, 18 back"));
    let from = stream.get_ref().local_addr().unwrap();
    assert_eq!(client.running.line(), format!("{from} opened"));
    assert_eq!(client.running.line(), format!("{from} closed: 5 bytes, 18 back"));
}

#[test]
fn forwards_more_than_all_buffers_hold() {
    let (_service, _server, client) = pair(&[]);
    let sent: Arc<[u8]> = (0..8 * 1024 * 1024_u32).map(|index| (index % 251) as u8).collect();
    let mut stream = open(&client.addr);
    let mut writer = stream.get_ref().try_clone().unwrap();
    let writing = thread::spawn({
        let sent = Arc::clone(&sent);
        move || writer.write_all(&sent).unwrap()
    });
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == *sent);
    assert_eq!(finish(&mut stream), format!("{} bytes", sent.len()));
}

#[test]
fn wrong_key_is_logged_on_both_sides() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, OTHER_KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().ends_with(" handshake refused"));
    assert!(server.running.line().ends_with(MISMATCH));
    assert_eq!(service.connections(), 0);
}

#[test]
fn peer_without_handshake_gets_only_a_challenge() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &["--timeout", "0.3"]);

    // A peer with another protocol: its first two bytes are the length of a frame that is too long.
    let mut http = connect(&server.addr);
    let mut challenge = [0; 35];
    http.read_exact(&mut challenge).unwrap();
    http.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(server.running.line().ends_with(HTTP));
    assert!(matches!(http.read(&mut [0]), Ok(0) | Err(_)), "no byte follows the challenge");

    // A peer that waits for a greeting.
    let mut received = Vec::new();
    connect(&server.addr).read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 35);
    assert!(server.running.line().contains(" handshake timed out: the peer sent nothing"));
    assert_eq!(service.connections(), 0);
}

#[test]
fn silent_peers_hold_no_session() {
    // One session at a time, and silent peers do not use it up.
    let (service, server, client) = pair(&["--max-sessions", "1", "--timeout", "3600"]);
    let mut silent: Vec<_> = (0..10).map(|_| connect(&server.addr)).collect();
    for peer in &mut silent {
        peer.read_exact(&mut [0; 35]).unwrap();
    }
    let mut stream = open(&client.addr);
    echo(&mut stream, b"hello");
    assert_eq!(service.connections(), 1);
}

#[test]
fn client_rejects_wrong_server() {
    // A server that sends something else than a challenge.
    let impostor = Service::start();
    let mut client = Proxy::client(&impostor.addr, KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().contains(" malformed handshake message: "));

    // The same key, but another audience.
    let mut server = Proxy::server(&impostor.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &["--audience", "another"]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().ends_with(" handshake refused"));
    assert!(server.running.line().ends_with(MISMATCH));
}

#[test]
fn key_replacement_keeps_sessions() {
    let (_service, mut server, mut client) = pair(&[]);
    let mut before = open(&client.addr);
    server.running.line_with("opened");
    client.running.line_with("opened");

    assert_eq!(server.replace(OTHER_KEY), "keys: 1");
    assert_closed_without_a_byte(&client.addr);
    assert!(server.running.line().ends_with(MISMATCH));

    assert_eq!(client.replace(OTHER_KEY), "keys: 1");
    echo(&mut open(&client.addr), b"hello");
    echo(&mut before, b"still open");
    server.running.line_with("opened");

    // An invalid file changes nothing.
    let line = server.replace("not hexadecimal");
    assert!(line.ends_with("; the keys are unchanged") && line.contains(", line 1: "), "{line}");
    echo(&mut open(&client.addr), b"hello");
}

#[test]
fn client_key_id() {
    let service = Service::start();
    let server = Proxy::server(&service.addr, KEY, &[]);
    let client = Proxy::client(&server.addr, KEY, &["--key-id", "alice"]);
    echo(&mut open(&client.addr), b"hello");

    let mut bob = example("proxy");
    bob.args(["client", "--listen", "127.0.0.1:0", "--target", &server.addr, "--audience", "test"]);
    bob.args(["--key-id", "bob", "--key-file"]).arg(client.key_file());
    let output = run(&mut bob, "");
    assert_eq!(output.status.code(), Some(1));
    let error =
        format!("error: key file {}: no key with the id \"bob\" (--key-id)\n", client.key_file().display());
    assert_eq!(stderr(&output), error);
}

#[test]
fn unreachable_target() {
    let unused = "127.0.0.1:1";
    let mut server = Proxy::server(unused, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    server.running.line_with("opened: key alice");
    let cause = TcpStream::connect(unused).unwrap_err();
    let expected = format!(" failed: cannot connect to {unused}: {cause}");
    assert!(server.running.line().ends_with(&expected));

    let mut other_client = Proxy::client(unused, KEY, &[]);
    assert_closed_without_a_byte(&other_client.addr);
    assert!(other_client.running.line().ends_with(&expected));
    client.running.line_with("opened");
}

#[test]
fn max_sessions() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &["--max-sessions", "1", "--timeout", "0.3"]);
    let client = Proxy::client(&server.addr, KEY, &[]);
    let mut first = open(&client.addr);
    server.running.line_with("opened");
    assert_closed_without_a_byte(&client.addr);
    assert!(server.running.line().ends_with(" rejected: too many sessions"));
    assert_eq!(finish(&mut first), "0 bytes");
    server.running.line_with("closed");
    echo(&mut open(&client.addr), b"hello");

    // On the client's side, connections over the limit wait without a deadline.
    let server = Proxy::server(&service.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &["--max-sessions", "1"]);
    let mut first = open(&client.addr);
    let waiting = connect(&client.addr);
    // Long enough for a handshake, if the connection were accepted.
    (0..500).for_each(|_| echo(&mut first, b"round"));
    assert_eq!(finish(&mut first), "2500 bytes");
    drop(waiting);
    let lines: Vec<_> = (0..3).map(|_| client.running.line()).collect();
    let first = first.get_ref().local_addr().unwrap();
    assert_eq!(lines[..2], [format!("{first} opened"), format!("{first} closed: 2500 bytes, 2516 back")]);
    assert!(lines[2].ends_with(" opened"), "{lines:?}");
}

/// Sessions in the middle of a transfer continue to their end, and no new connection is accepted.
#[test]
fn shutdown_under_load() {
    const SESSIONS: usize = 8;
    let (_service, mut server, mut client) = pair(&[]);
    let signals_sent = Arc::new(AtomicBool::new(false));
    let (rounds, first_round) = mpsc::channel();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let mut stream = open(&client.addr);
            let (rounds, signals_sent) = (rounds.clone(), Arc::clone(&signals_sent));
            thread::spawn(move || {
                let chunk = [7; 10_000];
                let mut echoed = 0;
                // Before the signals, while they come, and once more after them.
                let mut last = false;
                while !last {
                    last = signals_sent.load(Ordering::Relaxed);
                    echo(&mut stream, &chunk);
                    echoed += chunk.len();
                    rounds.send(()).unwrap_or_default();
                }
                assert_eq!(finish(&mut stream), format!("{echoed} bytes"));
            })
        })
        .collect();
    first_round.recv().unwrap();
    let mut in_flight = connect(&server.addr);
    in_flight.read_exact(&mut [0; 35]).unwrap();

    client.running.terminate();
    client.running.line_with("stopping");
    server.running.interrupt();
    server.running.line_with("stopping");
    assert_eq!(in_flight.read(&mut [0]).unwrap(), 0, "an in-flight handshake ends at once");
    assert!(server.running.line_with("handshake").ends_with(" shut down before the handshake completed"));
    for addr in [&client.addr, &server.addr] {
        let refused = TcpStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "the listener is closed");
    }
    signals_sent.store(true, Ordering::Relaxed);
    for session in sessions {
        session.join().unwrap();
    }
    let stopped = client.running.line_with("stopped");
    assert!(stopped.ends_with(&format!(": {SESSIONS} completed, 0 failed, 0 aborted")), "{stopped}");
    let stopped = server.running.line_with("stopped");
    assert!(stopped.ends_with(&format!(": {SESSIONS} completed, 1 failed, 0 aborted")), "{stopped}");
    assert!(client.running.wait().success() && server.running.wait().success());
}

#[test]
fn open_sessions_are_aborted_at_deadline_or_second_signal() {
    let (_service, server, mut client) = pair(&["--shutdown-timeout", "0.2"]);
    let mut session = open(&client.addr);
    client.running.terminate();
    assert_eq!(client.running.line_with("stopped"), "stopped: 0 completed, 0 failed, 1 aborted");
    assert!(client.running.wait().success());
    assert!(matches!(session.read(&mut [0]), Ok(0) | Err(_)));
    drop(server);

    let (_service, mut server, client) = pair(&["--shutdown-timeout", "3600"]);
    let mut session = open(&client.addr);
    server.running.terminate();
    server.running.line_with("stopping");
    echo(&mut session, b"still here");
    server.running.terminate();
    assert_eq!(server.running.line(), "stopped: 0 completed, 0 failed, 1 aborted");
    assert_eq!(server.running.wait().code(), Some(1));
    assert!(matches!(session.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn startup_errors_name_the_flag() {
    let service = Service::start();
    let server = Proxy::server(&service.addr, KEY, &[]);
    let key_file = server.key_file();
    let proxy = |listen: &str, target: &str| {
        let mut command = example("proxy");
        command.args(["server", "--listen", listen, "--target", target, "--audience", "test"]);
        run(command.arg("--key-file").arg(&key_file), "")
    };
    let cause = TcpListener::bind(&server.addr).unwrap_err();
    let output = proxy(&server.addr, &service.addr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), format!("error: --listen {}: {cause}\n", server.addr));

    // What a flag cannot mean is an error at the start, and not one of each session.
    let example = "expected HOST:PORT, such as 127.0.0.1:8888 or [::1]:8888";
    for (value, problem) in [
        ("localhost", "the port is missing"),
        (":6379", "the host is missing"),
        ("localhost:redis", "the port is not a number from 0 to 65535"),
        ("localhost:65536", "the port is not a number from 0 to 65535"),
        ("/run/redis.sock", "neither Unix sockets nor URLs are supported"),
        ("unix:/run/redis.sock", "neither Unix sockets nor URLs are supported"),
        ("redis://localhost:6379", "neither Unix sockets nor URLs are supported"),
        ("::1:6379", "an IPv6 address must be in brackets"),
        ("[localhost]:6379", "there is no IPv6 address in the brackets"),
    ] {
        for (flag, listen, target) in [("--listen", value, "127.0.0.1:1"), ("--target", "127.0.0.1:0", value)]
        {
            let output = proxy(listen, target);
            assert_eq!(output.status.code(), Some(2));
            let error = format!("error: invalid value '{value}' for '{flag} <ADDR>': {problem}; {example}\n");
            assert!(stderr(&output).starts_with(&error), "{}", stderr(&output));
        }
    }
    let output = proxy("127.0.0.1:0", "localhost:0");
    let error =
        "error: invalid value 'localhost:0' for '--target <ADDR>': port 0 is not a port to connect to\n";
    assert!(stderr(&output).starts_with(error), "{}", stderr(&output));
}
