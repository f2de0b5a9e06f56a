//! Health checks and port scans at the server's side, and penalties.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::http::{metric, wait_for_metric};
use crate::support::service::{Service, assert_reset_without_a_byte, echo, open};
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar};

/// A failed handshake, with a penalty of 10 seconds.
fn fail(addr: &str) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap_or_default();
}

/// A load balancer that checks the server's health, on the address of the clients.
#[test]
fn probes_are_counted_and_have_no_penalty() {
    for mechanism in MECHANISMS {
        let service = Service::start();
        let args = ["--mechanism", mechanism, "--penalties", "--admin", "127.0.0.1:0"];
        let mut server = Sidecar::server(&service.addr, KEY, &args);
        let client = Sidecar::client(&server.addr, KEY, &["--mechanism", mechanism]);
        for _ in 0..25 {
            // Connects and closes at once.
            drop(TcpStream::connect(&server.addr).unwrap());
        }
        wait_for_metric(server.admin(), "challenge_handshakes_total", &["outcome=\"probe\""], 25);
        echo(&mut open(&client.addr), b"hello");
        assert_eq!(metric(server.admin(), "challenge_not_admitted_total", &[]), 0);

        // No line of the log is about them.
        drop(client);
        server.running.terminate();
        let events = server.rest();
        let is_expected = ["session ended", "stopping", "stopped"];
        assert!(events.iter().all(|event| is_expected.contains(&event.message())), "{events:?}");
    }
}

#[test]
fn exempt_addresses_have_no_penalties() {
    let service = Service::start();
    for (args, throttled) in [
        (&[][..], true),
        (&["--exempt", "192.0.2.0/24"], true),
        (&["--exempt", "192.0.2.0/24", "--exempt", "127.0.0.0/8"], false),
        (&["--exempt", "127.0.0.1"], false),
    ] {
        let mut server = Sidecar::server(&service.addr, KEY, &[&["--penalties"], args].concat());
        let mut client = Sidecar::client(&server.addr, KEY, &[]);
        for _ in 0..2 {
            fail(&server.addr);
            assert!(server.failure().starts_with("malformed"));
        }
        if throttled {
            assert_reset_without_a_byte(&client.addr);
            let refused = server.event("not admitted");
            assert_eq!(refused.text("error.type"), "throttled");
            assert_eq!(refused.text("network.peer.address"), "127.0.0.1");
            let ended = client.ended();
            let reason = ended.text("reason");
            assert!(
                reason.starts_with("server: connection closed before the handshake completed"),
                "{reason}"
            );
        } else {
            echo(&mut open(&client.addr), b"hello");
        }
    }
}

/// Without the flag nothing is refused.
#[test]
fn no_penalties_by_default() {
    let service = Service::start();
    let mut server = Sidecar::server(&service.addr, KEY, &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    for _ in 0..4 {
        fail(&server.addr);
        server.failure();
    }
    echo(&mut open(&client.addr), b"hello");
}
