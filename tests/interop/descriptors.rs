//! File descriptors: what the programs do within their limit, and without free ones.
#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use tower_challenge::{Authenticated, Connector, Key, mutual};

use crate::process::{Running, example, limited, run, set_descriptor_limit, stderr, stdout};
use crate::proxy_pair::{KEY as PROXY_KEY, Proxy};

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

/// The servers with the arguments that they need, and the descriptors of a session of each.
fn servers(key_file: &str) -> Vec<(Command, usize)> {
    let keys = ["--audience", "test", "--listen", "127.0.0.1:0", "--key-file", key_file];
    let mut server = example("server");
    server.args(keys);
    let mut observe = example("example-observe");
    observe.args(keys).args(["--metrics", "127.0.0.1:0"]);
    let mut proxy = example("proxy");
    proxy.args(["server", "--target", "127.0.0.1:1"]).args(keys);
    vec![(server, 1), (observe, 1), (proxy, 2)]
}

fn key_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("alice:{PROXY_KEY}\n")).unwrap();
    file
}

#[test]
fn soft_limit_is_raised() {
    let keys = key_file();
    for (command, _) in servers(keys.path().to_str().unwrap()) {
        let mut server = Running::start(&mut with_limits(&command, 256, 5_000));
        // Large enough for the defaults.
        assert!(server.line().starts_with("listening on "));
        assert_eq!(soft_limit(&server), 5_000);
    }
}

#[test]
fn defaults_fit_the_hard_limit() {
    let keys = key_file();
    for (command, session) in servers(keys.path().to_str().unwrap()) {
        let mut server = Running::start(&mut with_limits(&command, 1_024, 1_024));
        let line = server.line();
        let line = line.strip_prefix("the limit of 1024 open files allows ").unwrap();
        let counts: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [sessions, handshakes] = counts[..] else { panic!("{line}") };
        assert!(sessions >= 300 && handshakes >= 300, "{line}");
        let free = 1_024 - (sessions * session + handshakes);
        assert!((32..64).contains(&free), "{line}");
        server.line_with("listening on ");
    }
}

#[test]
fn too_low_limit_is_an_error_with_the_arithmetic() {
    let keys = key_file();
    for (mut command, session) in servers(keys.path().to_str().unwrap()) {
        let output = run(&mut with_limits(&command, 100, 100), "");
        let needed = 128 * session + 128 + 32;
        let error = format!(
            "error: 128 sessions and 128 in-flight handshakes need {needed} file descriptors \
             (128 x {session} + 128 x 1 + 32), but the limit is 100: raise the hard limit (`ulimit -Hn`), or lower \
             --max-sessions or --max-pending\n"
        );
        assert_eq!((output.status.code(), stderr(&output), stdout(&output)), (Some(1), error.as_str(), ""));

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

/// Connects to a proxy as a client that holds the key, from an address of its own, and exchanges a message.
async fn connect_client(addr: SocketAddr) -> Authenticated<tokio::net::TcpStream, mutual::ServerPeer> {
    let key = Key::from_hex(PROXY_KEY).unwrap();
    let audience = mutual::Audience::new("test").unwrap();
    let connector = Connector::new(mutual::Client::new("alice", &key, audience).unwrap());
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut stream = connector.connect(tcp).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"hello");
    stream
}

/// Keeps 100 connections open that send nothing, from the address 127.0.0.`last`, until the counter is dropped. Counts
/// connections.
async fn silent_peers(addr: SocketAddr, last: u8, connected: Weak<AtomicUsize>) {
    let mut peers = Vec::new();
    while connected.strong_count() > 0 {
        peers.retain(|peer: &tokio::net::TcpStream| {
            let mut buf = [0; 64];
            // Reads what has arrived, the challenge, and sees the end.
            loop {
                match peer.try_read(&mut buf) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        while peers.len() < 100 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
            match timeout(Duration::from_secs(1), socket.connect(addr)).await {
                Ok(Ok(peer)) => peers.push(peer),
                _ => break,
            }
            if let Some(connected) = connected.upgrade() {
                connected.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// More silent peers than the limit on descriptors, in addition to idle sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_accepts_clients_among_silent_peers_within_1024_descriptors() {
    set_descriptor_limit(std::process::id(), 4_096);
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = service.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let limit = |command| limited(&command, 1_024);
    let mut proxy = Proxy::start_with(&limit, "server", &target, PROXY_KEY, &[]);
    let addr: SocketAddr = proxy.addr.parse().unwrap();

    let mut idle = Vec::new();
    for _ in 0..30 {
        idle.push(connect_client(addr).await);
    }
    let connected = Arc::new(AtomicUsize::new(0));
    let peers: Vec<_> =
        (2..13).map(|last| tokio::spawn(silent_peers(addr, last, Arc::downgrade(&connected)))).collect();
    let begin = Instant::now();
    while connected.load(Ordering::Relaxed) < 1_100 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..12 {
        let begin = Instant::now();
        let connected = timeout(Duration::from_secs(10), connect_client(addr)).await;
        assert!(connected.is_ok(), "not connected within 10 seconds");
        assert!(begin.elapsed() < Duration::from_secs(2), "connected after {:?}", begin.elapsed());
        let descriptors = proxy.running.descriptors();
        assert!(descriptors < 1_024, "{descriptors} descriptors");
    }
    // The sessions from before are still there.
    for session in &mut idle {
        session.write_all(b"hello").await.unwrap();
        session.read_exact(&mut [0; 5]).await.unwrap();
    }
    drop(connected);
    for peer in peers {
        peer.await.unwrap();
    }
    drop(idle);
    proxy.running.terminate();
    let lines = tokio::task::spawn_blocking(move || proxy.running.rest()).await.unwrap();
    assert!(lines.iter().any(|line| line.contains(" evicted ")), "the limit was reached");
    for problem in ["Too many open files", "accept failed", "cannot connect"] {
        assert!(!lines.iter().any(|line| line.contains(problem)), "{problem}: {lines:?}");
    }
}
