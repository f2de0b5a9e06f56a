//! SIGTERM and SIGINT: sessions may continue for a while, and nothing new begins.

use std::io::{self, Read as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::support::http::wait_for_metric;
use crate::support::service::{connect, echo, finish, open, read_until_reset};
use crate::support::sidecar::{Event, MECHANISMS, pair};

fn counts(stopped: &Event) -> [u64; 3] {
    ["completed", "failed", "aborted"].map(|field| stopped.number(field))
}

/// Sessions in the middle of a transfer continue to their end, and no new connection is accepted.
#[test]
fn shutdown_under_load() {
    const SESSIONS: usize = 8;
    for mechanism in MECHANISMS {
        let (_service, mut server, mut client) = pair(mechanism, &["--admin", "127.0.0.1:0"]);
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
        wait_for_metric(server.admin(), "challenge_handshakes_pending", &[], 1);

        client.running.terminate();
        client.event("stopping");
        server.running.interrupt();
        server.event("stopping");
        let mut received = Vec::new();
        in_flight.read_to_end(&mut received).expect("an in-flight handshake ends at once");
        assert_eq!(received.len(), if mechanism == "mutual" { 35 } else { 0 });
        assert_eq!(server.failure(), "shut down before the handshake completed");
        for addr in [&server.addr, &client.addr] {
            let refused = TcpStream::connect(addr).expect_err("the listener is closed");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        signals_sent.store(true, Ordering::Relaxed);
        for session in sessions {
            session.join().unwrap();
        }
        assert_eq!(counts(&client.event("stopped")), [SESSIONS as u64, 0, 0]);
        assert_eq!(counts(&server.event("stopped")), [SESSIONS as u64, 1, 0]);
        assert!(client.running.wait().success() && server.running.wait().success());
    }
}

#[test]
fn open_sessions_are_aborted_at_the_deadline() {
    for mechanism in MECHANISMS {
        for stops_server in [false, true] {
            let (_service, mut server, mut client) = pair(mechanism, &["--shutdown-timeout", "0.2"]);
            let mut session = open(&client.addr);
            let stopping = if stops_server { &mut server } else { &mut client };
            stopping.running.terminate();
            assert_eq!(stopping.ended().text("reason"), "aborted by the shutdown");
            assert_eq!(counts(&stopping.event("stopped")), [0, 0, 1]);
            assert!(stopping.running.wait().success());
            // An end that the service did not ask for is an error for its client.
            assert_eq!(read_until_reset(&mut session), b"");
        }
    }
}

#[test]
fn open_sessions_are_aborted_at_the_second_signal() {
    for mechanism in MECHANISMS {
        let (_service, mut server, client) = pair(mechanism, &["--shutdown-timeout", "3600"]);
        let mut session = open(&client.addr);
        server.running.terminate();
        server.event("stopping");
        echo(&mut session, b"still here");
        server.running.terminate();
        assert_eq!(server.ended().text("reason"), "aborted by the shutdown");
        assert_eq!(counts(&server.event("stopped")), [0, 0, 1]);
        assert_eq!(server.running.wait().code(), Some(1));
        assert_eq!(read_until_reset(&mut session), b"");
    }
}
