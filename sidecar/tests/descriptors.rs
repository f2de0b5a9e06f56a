//! File descriptors: what the program does within its limit, and without free ones.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tower_challenge::{Authenticated, Connector, Key, noise};

use crate::process::{limited, run, set_descriptor_limit, stderr, stdout};
use crate::support::sidecar::{KEY, Sidecar, program, write_key};

/// Returns the soft limit of a running program on open files.
fn soft_limit(sidecar: &Sidecar) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.running.id())).unwrap();
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

#[test]
fn soft_limit_is_raised() {
    for side in ["server", "client"] {
        let limit = |command| with_limits(&command, 256, 5_000);
        // Large enough for the defaults.
        let sidecar = Sidecar::start_with(&limit, side, &["--target", "127.0.0.1:1"], KEY, &[]);
        assert_eq!(soft_limit(&sidecar), 5_000);
    }
}

/// The side, the descriptors of a session, and those of a handshake that is not a session.
const SIDES: [(&str, usize, usize); 2] = [("server", 2, 1), ("client", 2, 0)];

fn command(side: &str, keys: &std::path::Path) -> Command {
    let mut command = program();
    command.args([side, "--listen", "127.0.0.1:0", "--target", "127.0.0.1:1", "--audience", "test"]);
    command.args(["--log-format", "json", "--key-file"]).arg(keys);
    command
}

#[test]
fn defaults_fit_the_hard_limit() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    for (side, session, handshake) in SIDES {
        let mut command = with_limits(&command(side, &keys), 1_024, 1_024);
        let mut running = crate::process::Running::start_stderr(&mut command);
        let line = running.line_with("limited by the number of open files");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        let [sessions, pending] = ["max_sessions", "max_pending"]
            .map(|field| usize::try_from(event[field].as_u64().unwrap()).unwrap());
        assert!(sessions >= 300 && pending >= if side == "server" { 300 } else { 64 }, "{line}");
        let free = 1_024 - (sessions * session + pending * handshake);
        // For the program itself and for the pipes of `splice`.
        assert!((32..128).contains(&free), "{line}");
        running.line_with("listening");
    }
}

#[test]
fn too_low_limit_is_an_error_with_the_arithmetic() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    for (side, session, handshake) in SIDES {
        let mut command = command(side, &keys);
        let output = run(&mut with_limits(&command, 100, 100), "");
        let error = stderr(&output);
        let pending = error.split(" sessions and ").nth(1).unwrap().split(' ').next().unwrap();
        let pending: usize = pending.parse().unwrap();
        // The smallest default of a server, and the default of a client.
        let expected = if side == "server" { 128..=128 } else { 64..=128 };
        assert!(expected.contains(&pending), "{error}");
        let needed = 128 * session + pending * handshake;
        let expected = format!(
            "error: 128 sessions and {pending} in-flight handshakes need {needed} file descriptors \
             (128 x {session} + {pending} x {handshake}), but the share of this service is 36: raise the hard limit \
             (`ulimit -Hn`), or lower --max-sessions or --max-pending\n"
        );
        assert_eq!((output.status.code(), error, stdout(&output)), (Some(1), expected.as_str(), ""));

        // With less of both it starts.
        let limit = |command: Command| with_limits(&command, 100, 100);
        let args = ["--max-sessions", "12", "--max-pending", "12"];
        Sidecar::start_with(&limit, side, &["--target", "127.0.0.1:1"], KEY, &args);

        // More than fits is an error, too.
        let output = run(command.args(["--max-sessions", "1000000000"]), "");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with("error: 1000000000 sessions and "), "{}", stderr(&output));
    }
}

/// Connects to a server as a client that holds the key, from an address of its own, and exchanges a message.
async fn connect_client(addr: SocketAddr) -> Authenticated<noise::NoiseStream<TcpStream>, noise::ServerPeer> {
    let key = Key::from_hex(KEY).unwrap();
    let audience = noise::Audience::new("test").unwrap();
    let connector = Connector::new(noise::Client::new("alice", &key, audience).unwrap());
    let tcp = TcpStream::connect(addr).await.unwrap();
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
        peers.retain(|peer: &TcpStream| {
            let mut buf = [0; 64];
            // Reads what has arrived, and sees the end.
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
        sleep(Duration::from_millis(50)).await;
    }
}

/// More silent peers than the limit on descriptors, in addition to idle sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_accepted_among_silent_peers_within_1024_descriptors() {
    set_descriptor_limit(std::process::id(), 8_192);
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
    let args = ["--admin", "127.0.0.1:0", "--log-level", "debug"];
    let mut server = Sidecar::start_with(&limit, "server", &["--target", &target], KEY, &args);
    let addr: SocketAddr = server.addr.parse().unwrap();

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
        sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..12 {
        let begin = Instant::now();
        let connected = timeout(Duration::from_secs(10), connect_client(addr)).await;
        assert!(connected.is_ok(), "not connected within 10 seconds");
        assert!(begin.elapsed() < Duration::from_secs(2), "connected after {:?}", begin.elapsed());
        let descriptors = server.running.descriptors();
        assert!(descriptors < 1_024, "{descriptors} descriptors");
    }
    // The sessions from before are still there.
    for session in &mut idle {
        session.write_all(b"hello").await.unwrap();
        session.read_exact(&mut [0; 5]).await.unwrap();
    }
    let admin = server.admin().to_owned();
    let evicted = tokio::task::spawn_blocking(move || {
        crate::support::http::metric(&admin, "challenge_handshakes_total", &["outcome=\"evicted\""])
    });
    assert!(evicted.await.unwrap() > 0, "the limit was reached");
    drop(connected);
    for peer in peers {
        peer.await.unwrap();
    }
    drop(idle);
    server.running.terminate();
    let events = tokio::task::spawn_blocking(move || server.rest()).await.unwrap();
    for problem in ["Too many open files", "accept failed", "cannot connect"] {
        let found = events.iter().find(|event| format!("{event:?}").contains(problem));
        assert!(found.is_none(), "{found:?}");
    }
}

/// An idle session holds its two sockets and nothing else, also after bulk data.
#[test]
fn idle_sessions_hold_two_descriptors() {
    use crate::support::service::{echo, open};
    use crate::support::sidecar::{MECHANISMS, pair};

    for mechanism in MECHANISMS {
        let (_service, server, client) = pair(mechanism, &[]);
        drop(open(&client.addr));
        let sides = [&server.running, &client.running];
        let count = || sides.map(crate::process::Running::descriptors);
        let settled = |expected: &dyn Fn([usize; 2]) -> bool| {
            let begin = Instant::now();
            while !expected(count()) {
                assert!(begin.elapsed() < Duration::from_secs(10), "{mechanism}: {:?}", count());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let chunk = vec![7; 200_000];
        let mut sessions: Vec<_> = (0..20).map(|_| open(&client.addr)).collect();
        for session in &mut sessions {
            // Larger than any buffer, but not than all of those on the way.
            echo(session, &chunk);
        }
        // A pipe of each worker thread may remain, and so may what the runtime has opened.
        let threads = std::thread::available_parallelism().unwrap().get();
        let before = count();
        sessions.truncate(10);
        settled(&|now| now.iter().zip(before).all(|(now, before)| now + 20 == before));
        sessions.clear();
        settled(&|now| now.iter().zip(before).all(|(now, before)| now + 40 == before));
        assert!(before.iter().all(|&before| before < 40 + 30 + 2 * threads), "{mechanism}: {before:?}");
    }
}
