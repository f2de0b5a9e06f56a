//! The example `proxy`, both of its sides as processes of their own, in front of a plain service that knows nothing
//! of it.
#![cfg(all(unix, feature = "net", feature = "mutual"))]

#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proxy::{KEY, OTHER_KEY, Proxy};

/// A service that speaks first, echoes what comes, and after its end says how much that was.
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
                // Who goes without a word does so in the tests that want it.
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

/// Connects as a program does that knows nothing of proxies.
fn connect(addr: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    BufReader::new(stream)
}

/// Connects, and has been greeted.
fn open(addr: &str) -> BufReader<TcpStream> {
    let mut stream = connect(addr);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    stream
}

/// Says something and hears it.
fn echo(stream: &mut BufReader<TcpStream>, said: &[u8]) {
    stream.get_mut().write_all(said).unwrap();
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, said);
}

/// Closes its own direction, and hears the rest.
fn finish(stream: &mut BufReader<TcpStream>) -> String {
    stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

/// Whoever is turned away hears nothing: the end, or a reset if it has said something.
fn assert_closed_without_a_byte(addr: &str) {
    let mut heard = Vec::new();
    let ended = connect(addr).read_to_end(&mut heard);
    assert!(ended.is_ok() || ended.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
    assert_eq!(heard, b"");
}

fn pair(args: &[&str]) -> (Service, Proxy, Proxy) {
    let service = Service::start();
    let server = Proxy::server(&service.addr, KEY, args);
    let client = Proxy::client(&server.addr, KEY, args);
    (service, server, client)
}

#[test]
fn the_right_key_and_an_end_in_one_direction_that_is_passed_on() {
    let (service, mut server, mut client) = pair(&[]);
    let mut stream = open(&client.addr);
    echo(&mut stream, b"hello");
    // The service hears of the end, and what it says then is heard: only one direction has been closed.
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
fn more_than_all_buffers_hold() {
    let (_service, _server, client) = pair(&[]);
    let said: Arc<[u8]> = (0..8 * 1024 * 1024_u32).map(|index| (index % 251) as u8).collect();
    let mut stream = open(&client.addr);
    let mut writer = stream.get_ref().try_clone().unwrap();
    let writing = thread::spawn({
        let said = Arc::clone(&said);
        move || writer.write_all(&said).unwrap()
    });
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).unwrap();
    writing.join().unwrap();
    assert!(heard == *said);
    assert_eq!(finish(&mut stream), format!("{} bytes", said.len()));
}

#[test]
fn a_wrong_key_is_refused_on_both_sides() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, OTHER_KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().ends_with(" refused: handshake refused"));
    assert!(server.running.line().ends_with(" refused: handshake refused"));
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_stranger_gets_a_challenge_and_no_further() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &["--timeout", "0.3"]);

    // One that speaks another protocol: its first two bytes are the length of a frame that is too long.
    let mut stranger = connect(&server.addr);
    let mut challenge = [0; 35];
    stranger.read_exact(&mut challenge).unwrap();
    stranger.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(server.running.line().ends_with(" refused: malformed handshake message"));
    assert!(matches!(stranger.read(&mut [0]), Ok(0) | Err(_)), "no byte behind the challenge");

    // One that waits for a greeting.
    let mut heard = Vec::new();
    connect(&server.addr).read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 35);
    assert!(server.running.line().ends_with(" refused: handshake timed out"));
    assert_eq!(service.connections(), 0);
}

#[test]
fn silent_strangers_are_in_nobody_s_way() {
    // One session at a time, and none of the strangers has it.
    let (service, server, client) = pair(&["--max-sessions", "1", "--timeout", "3600"]);
    let mut strangers: Vec<_> = (0..10).map(|_| connect(&server.addr)).collect();
    for stranger in &mut strangers {
        stranger.read_exact(&mut [0; 35]).unwrap();
    }
    let mut stream = open(&client.addr);
    echo(&mut stream, b"hello");
    assert_eq!(service.connections(), 1);
}

#[test]
fn a_server_that_is_not_the_one_that_was_meant() {
    // Somebody who listens and says something, but not what a server with the key says.
    let impostor = Service::start();
    let mut client = Proxy::client(&impostor.addr, KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().ends_with(" refused: malformed handshake message"));

    // The same key, but for another audience.
    let mut server = Proxy::server(&impostor.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &["--audience", "another"]);
    assert_closed_without_a_byte(&client.addr);
    assert!(client.running.line().ends_with(" refused: handshake refused"));
    assert!(server.running.line().ends_with(" refused: handshake refused"));
}

#[test]
fn keys_are_read_again_and_sessions_go_on() {
    let (_service, mut server, mut client) = pair(&[]);
    let mut before = open(&client.addr);
    server.running.line_with("opened");
    client.running.line_with("opened");

    assert_eq!(server.replace(OTHER_KEY), "keys: 1");
    assert_closed_without_a_byte(&client.addr);
    assert!(server.running.line().ends_with(" refused: handshake refused"));

    assert_eq!(client.replace(OTHER_KEY), "keys: 1");
    echo(&mut open(&client.addr), b"hello");
    echo(&mut before, b"I am still here");
    server.running.line_with("opened");

    // A file that is broken changes nothing.
    let line = server.replace("not hexadecimal");
    assert!(line.ends_with(" hexadecimal digits; they stay as they were"), "{line}");
    echo(&mut open(&client.addr), b"hello");
}

#[test]
fn which_key_the_client_uses() {
    let service = Service::start();
    let server = Proxy::server(&service.addr, KEY, &[]);
    let client = Proxy::client(&server.addr, KEY, &["--key-id", "alice"]);
    echo(&mut open(&client.addr), b"hello");

    let mut bob = process::example("proxy");
    bob.args(["client", "--listen", "127.0.0.1:0", "--target", &server.addr, "--audience", "test"]);
    bob.args(["--key-id", "bob", "--key-file"]).arg(client.key_file());
    let output = process::run(&mut bob, "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(process::stderr(&output), "error: unsuitable key: none has the id that was asked for\n");
}

#[test]
fn a_target_that_is_not_there() {
    let nobody = "127.0.0.1:1";
    let mut server = Proxy::server(nobody, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &[]);
    assert_closed_without_a_byte(&client.addr);
    server.running.line_with("opened: key alice");
    assert!(server.running.line().contains(" failed: target not reached: "));

    let mut client_of_nobody = Proxy::client(nobody, KEY, &[]);
    assert_closed_without_a_byte(&client_of_nobody.addr);
    assert!(client_of_nobody.running.line().contains(" failed: target not reached: "));
    client.running.line_with("opened");
}

#[test]
fn no_more_sessions_than_may_be() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &["--max-sessions", "1", "--timeout", "0.3"]);
    let client = Proxy::client(&server.addr, KEY, &[]);
    let mut first = open(&client.addr);
    server.running.line_with("opened");
    assert_closed_without_a_byte(&client.addr);
    assert!(server.running.line().ends_with(" turned away: too many sessions"));
    assert_eq!(finish(&mut first), "0 bytes");
    server.running.line_with("closed");
    echo(&mut open(&client.addr), b"hello");

    // On the client's side whoever is beyond the limit waits, for as long as that takes.
    let server = Proxy::server(&service.addr, KEY, &[]);
    let mut client = Proxy::client(&server.addr, KEY, &["--max-sessions", "1"]);
    let mut first = open(&client.addr);
    let waiting = connect(&client.addr);
    // Long enough for a handshake, if it were let in.
    (0..500).for_each(|_| echo(&mut first, b"round"));
    assert_eq!(finish(&mut first), "2500 bytes");
    drop(waiting);
    let said: Vec<_> = (0..3).map(|_| client.running.line()).collect();
    let first = first.get_ref().local_addr().unwrap();
    assert_eq!(said[..2], [format!("{first} opened"), format!("{first} closed: 2500 bytes, 2516 back")]);
    assert!(said[2].ends_with(" opened"), "{said:?}");
}

/// Sessions that are in the middle of something go on to their end, and nobody else comes in.
#[test]
fn shutdown_under_load() {
    const SESSIONS: usize = 8;
    let (_service, mut server, mut client) = pair(&[]);
    let proxies_know = Arc::new(AtomicBool::new(false));
    let (tell, under_way) = mpsc::channel();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let mut stream = open(&client.addr);
            let (tell, proxies_know) = (tell.clone(), Arc::clone(&proxies_know));
            thread::spawn(move || {
                let chunk = [7; 10_000];
                let mut echoed = 0;
                // Before the signals, while they come, and once more after them.
                let mut last = false;
                while !last {
                    last = proxies_know.load(Ordering::Relaxed);
                    echo(&mut stream, &chunk);
                    echoed += chunk.len();
                    tell.send(()).unwrap_or_default();
                }
                assert_eq!(finish(&mut stream), format!("{echoed} bytes"));
            })
        })
        .collect();
    under_way.recv().unwrap();
    let mut stranger = connect(&server.addr);
    stranger.read_exact(&mut [0; 35]).unwrap();

    client.running.terminate();
    client.running.line_with("stopping");
    server.running.interrupt();
    server.running.line_with("stopping");
    assert_eq!(stranger.read(&mut [0]).unwrap(), 0, "a handshake that is pending ends at once");
    assert!(
        server.running.line_with("refused").ends_with(" refused: shut down before the handshake was over")
    );
    for addr in [&client.addr, &server.addr] {
        let refused = TcpStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "nobody listens");
    }
    proxies_know.store(true, Ordering::Relaxed);
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
fn sessions_that_stay_are_aborted_at_the_deadline_or_at_the_second_signal() {
    let (_service, server, mut client) = pair(&["--shutdown-timeout", "0.2"]);
    let mut stays = open(&client.addr);
    client.running.terminate();
    assert_eq!(client.running.line_with("stopped"), "stopped: 0 completed, 0 failed, 1 aborted");
    assert!(client.running.wait().success());
    assert!(matches!(stays.read(&mut [0]), Ok(0) | Err(_)));
    drop(server);

    let (_service, mut server, client) = pair(&["--shutdown-timeout", "3600"]);
    let mut stays = open(&client.addr);
    server.running.terminate();
    server.running.line_with("stopping");
    echo(&mut stays, b"still here");
    server.running.terminate();
    assert_eq!(server.running.line(), "stopped: 0 completed, 0 failed, 1 aborted");
    assert_eq!(server.running.wait().code(), Some(1));
    assert!(matches!(stays.read(&mut [0]), Ok(0) | Err(_)));
}
