//! Peers that do not authenticate: each side refuses them, says why in its log, and passes on no byte.

use std::io::{Read as _, Write as _};

use crate::support::service::{Service, assert_reset_without_a_byte, connect};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar};

/// What the server logs about a wrong key or audience.
const MISMATCH: &str = concat!(
    "handshake refused: the proof does not match: wrong key, audience or channel binding",
    " (claimed key id \"alice\")"
);

/// What the client logs about it.
const REFUSED: &str = "server: handshake refused; its log says why";

/// What the server sends first, in bytes.
fn greeting_len(mechanism: &str) -> usize {
    if mechanism == "mutual" { 35 } else { 0 }
}

#[test]
fn wrong_key_is_logged_on_both_sides() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let service = Service::start();
        let mut server = Sidecar::server(&service.addr, KEY, &args);
        let mut client = Sidecar::client(&server.addr, OTHER_KEY, &args);
        assert_reset_without_a_byte(&client.addr);
        assert_eq!(client.ended().text("reason"), REFUSED);
        assert_eq!(server.failure(), MISMATCH);
        assert_eq!(service.connections(), 0);
    }
}

#[test]
fn unknown_key_id_is_logged_on_both_sides() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let service = Service::start();
        let mut server = Sidecar::server(&service.addr, KEY, &args);
        let mut client = Sidecar::client(
            &server.addr,
            &format!("{KEY}\nbob:{KEY}"),
            &["--key-id", "bob", "--mechanism", mechanism],
        );
        assert_reset_without_a_byte(&client.addr);
        assert_eq!(client.ended().text("reason"), REFUSED);
        let error = server.failure();
        assert!(error.ends_with("(claimed key id \"bob\")"), "{error}");
        assert_eq!(service.connections(), 0);
    }
}

#[test]
fn other_mechanism_is_named() {
    let service = Service::start();
    // A server of `noise` and a client of `mutual` wait for each other.
    let waits =
        "handshake timed out: the peer sent nothing; both sides may be waiting for the other to speak first";
    // Malformed, or refused if it has the length of an answer when it arrives.
    let names = ": the peer speaks the mechanism `noise` of this crate, this side `mutual`";
    for ([ours, theirs], expected) in [(["noise", "mutual"], waits), (["mutual", "noise"], names)] {
        let mut server = Sidecar::server(&service.addr, KEY, &["--mechanism", ours, "--timeout", "0.3"]);
        let client = Sidecar::client(&server.addr, KEY, &["--mechanism", theirs]);
        assert_reset_without_a_byte(&client.addr);
        let error = server.failure();
        assert!(error.ends_with(expected), "{error}");
    }
    assert_eq!(service.connections(), 0);
}

#[test]
fn peer_without_handshake_gets_no_byte_of_the_service() {
    for mechanism in MECHANISMS {
        let service = Service::start();
        let mut server = Sidecar::server(&service.addr, KEY, &["--mechanism", mechanism, "--timeout", "0.3"]);

        // A peer with another protocol: its first two bytes are the length of a frame that is too long.
        let mut http = connect(&server.addr);
        let mut challenge = vec![0; greeting_len(mechanism)];
        http.read_exact(&mut challenge).unwrap();
        http.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let expected = format!("malformed handshake message: the peer speaks HTTP, this side `{mechanism}`");
        assert_eq!(server.failure(), expected);
        assert!(matches!(http.read(&mut [0]), Ok(0) | Err(_)), "no byte follows");

        // A peer that waits for a greeting.
        let mut received = Vec::new();
        connect(&server.addr).read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), greeting_len(mechanism));
        let error = server.failure();
        assert!(error.starts_with("handshake timed out: the peer sent nothing"), "{error}");
        assert_eq!(service.connections(), 0);
    }
}

#[test]
fn client_rejects_wrong_server() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        // A server that sends something else.
        let impostor = Service::start();
        let mut client = Sidecar::client(&impostor.addr, KEY, &args);
        assert_reset_without_a_byte(&client.addr);
        let ended = client.ended();
        assert!(ended.text("reason").starts_with("server: malformed handshake message: "), "{ended:?}");

        // The same key, but another audience.
        let mut server = Sidecar::server(&impostor.addr, KEY, &args);
        let mut client =
            Sidecar::client(&server.addr, KEY, &[&args[..], &["--audience", "another"]].concat());
        assert_reset_without_a_byte(&client.addr);
        assert_eq!(client.ended().text("reason"), REFUSED);
        assert_eq!(server.failure(), MISMATCH);
        assert_eq!(impostor.connections(), 1, "only the first client reached it");
    }
}

/// Anyone who can connect could fill the disk.
#[test]
fn refusals_are_rate_limited() {
    let service = Service::start();
    let mut server = Sidecar::server(&service.addr, KEY, &[]);
    for _ in 0..20 {
        let mut peer = connect(&server.addr);
        peer.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap_or_default();
    }
    server.running.terminate();
    let events = server.rest();
    let failed = events.iter().filter(|event| event.message() == "handshake failed").count();
    assert_eq!(failed, 5);
    let summary = events.iter().find(|event| event.message() == "handshakes failed").unwrap();
    assert_eq!(summary.number("challenge.failures.total"), 20);
    assert_eq!(summary.number("challenge.failures.suppressed"), 15);
    assert_eq!(summary.number("challenge.failures.malformed"), 20);
}
