//! Sessions through a pair: data, ends, limits and targets.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::support::http::wait_for_metric;
use crate::support::service::{
    Service, assert_reset_without_a_byte, connect, echo, finish, open, read_until_reset,
};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar, pair, program};

use crate::process::{run, stderr};

/// 8 MiB that do not repeat at the boundaries of buffers.
fn large() -> Arc<[u8]> {
    (0..8 * 1024 * 1024_u32).map(|index| (index % 251) as u8).collect()
}

/// A pair with a target that the test plays.
fn pair_with_listener(mechanism: &str) -> (TcpListener, Sidecar, Sidecar) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let args = ["--mechanism", mechanism];
    let server = Sidecar::server(&listener.local_addr().unwrap().to_string(), KEY, &args);
    let client = Sidecar::client(&server.addr, KEY, &args);
    (listener, server, client)
}

#[test]
fn forwards_half_close() {
    for mechanism in MECHANISMS {
        let (service, mut server, mut client) = pair(mechanism, &[]);
        let mut stream = open(&client.addr);
        echo(&mut stream, b"hello");
        // The service sees the end, and its reply after it arrives: only one direction was closed.
        assert_eq!(finish(&mut stream), "5 bytes");
        assert_eq!(service.connections(), 1);

        let from = stream.get_ref().local_addr().unwrap().to_string();
        let ended = [server.ended(), client.ended()];
        for event in &ended {
            assert_eq!((event.number("to_target"), event.number("from_target")), (5, 18), "{event:?}");
            assert_eq!((event.text("reason"), event.text("service")), ("completed", "test"));
        }
        let [server, client] = ended;
        assert_eq!(server.text("user.id"), "alice");
        assert_eq!(client.text("peer"), from);
        assert!(!client.has("user.id"), "a plain client has no key");
    }
}

/// The target closes its direction first, and reads what is sent after that.
#[test]
fn forwards_half_close_of_the_target() {
    for mechanism in MECHANISMS {
        let (listener, mut server, mut client) = pair_with_listener(mechanism);
        let mut stream = connect(&client.addr);
        let (mut target, _) = listener.accept().unwrap();
        target.write_all(b"all").unwrap();
        target.shutdown(Shutdown::Write).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert_eq!(received, "all");

        stream.get_mut().write_all(b"after the end").unwrap();
        stream.get_mut().shutdown(Shutdown::Write).unwrap();
        received.clear();
        target.read_to_string(&mut received).unwrap();
        assert_eq!(received, "after the end");
        for side in [&mut server, &mut client] {
            let ended = side.ended();
            assert_eq!(ended.text("reason"), "completed");
            assert_eq!((ended.number("to_target"), ended.number("from_target")), (13, 3));
        }
    }
}

#[test]
fn forwards_more_than_all_buffers_hold() {
    for mechanism in MECHANISMS {
        let (_service, _server, client) = pair(mechanism, &[]);
        let sent = large();
        let mut stream = open(&client.addr);
        let mut writer = stream.get_ref().try_clone().unwrap();
        let writing = thread::spawn({
            let sent = Arc::clone(&sent);
            move || writer.write_all(&sent).unwrap()
        });
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == *sent, "{mechanism}");
        assert_eq!(finish(&mut stream), format!("{} bytes", sent.len()));
    }
}

#[test]
fn target_that_closes_after_a_large_response() {
    for mechanism in MECHANISMS {
        let (listener, mut server, mut client) = pair_with_listener(mechanism);
        let mut stream = connect(&client.addr);
        stream.get_mut().write_all(b"request").unwrap();
        let (mut target, _) = listener.accept().unwrap();
        let mut request = [0; 7];
        target.read_exact(&mut request).unwrap();
        let sent = large();
        let writing = thread::spawn({
            let sent = Arc::clone(&sent);
            // Closes both directions when it is dropped.
            move || target.write_all(&sent).unwrap()
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == *sent, "{mechanism}: {} bytes", received.len());
        drop(stream);
        for side in [&mut server, &mut client] {
            assert_eq!(side.ended().text("reason"), "completed");
        }
    }
}

#[test]
fn silent_peers_hold_no_session() {
    for mechanism in MECHANISMS {
        // One session at a time, and silent peers do not use it up.
        let args = ["--max-sessions", "1", "--timeout", "3600", "--admin", "127.0.0.1:0"];
        let (service, server, client) = pair(mechanism, &args);
        let _silent: Vec<_> = (0..10).map(|_| connect(&server.addr)).collect();
        wait_for_metric(server.admin(), "challenge_handshakes_pending", &[], 10);
        let mut stream = open(&client.addr);
        echo(&mut stream, b"hello");
        assert_eq!(service.connections(), 1);
    }
}

#[test]
fn client_key_id() {
    let service = Service::start();
    let server = Sidecar::server(&service.addr, KEY, &[]);
    let client = Sidecar::client(&server.addr, KEY, &["--key-id", "alice"]);
    echo(&mut open(&client.addr), b"hello");

    let mut bob = program();
    bob.args(["client", "--listen", "127.0.0.1:0", "--target", &server.addr, "--audience", "test"]);
    bob.args(["--key-id", "bob", "--key-file"]).arg(client.key_file());
    let output = run(&mut bob, "");
    assert_eq!(output.status.code(), Some(1));
    let error =
        format!("error: key file {}: no key with the id \"bob\" (--key-id)\n", client.key_file().display());
    assert_eq!(stderr(&output), error);
}

/// The keys of one file are told apart by their ids, and the server names the one that was used.
#[test]
fn client_uses_the_key_of_its_id() {
    let service = Service::start();
    let mut server = Sidecar::server(&service.addr, KEY, &[]);
    let both = format!("{KEY}\nbob:{OTHER_KEY}");
    assert_eq!(server.replace(&both).number("keys"), 2);
    for (args, expected) in [(&[][..], "alice"), (&["--key-id", "bob"], "bob")] {
        let client = Sidecar::client(&server.addr, &both, args);
        let mut stream = open(&client.addr);
        assert_eq!(finish(&mut stream), "0 bytes");
        assert_eq!(server.ended().text("user.id"), expected);
    }
}

#[test]
fn unreachable_target() {
    let unused = "127.0.0.1:1";
    let cause = TcpStream::connect(unused).unwrap_err();
    let expected = format!("cannot connect to {unused}: {cause}");
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let mut server = Sidecar::server(unused, KEY, &args);
        let mut client = Sidecar::client(&server.addr, KEY, &args);
        assert_reset_without_a_byte(&client.addr);
        let ended = server.ended();
        assert_eq!((ended.text("user.id"), ended.text("reason")), ("alice", expected.as_str()));
        // Its handshake succeeded: the reason names the server.
        let ended = client.ended();
        assert!(ended.text("reason").starts_with("server: "), "{ended:?}");

        let mut other_client = Sidecar::client(unused, KEY, &args);
        assert_reset_without_a_byte(&other_client.addr);
        assert_eq!(other_client.ended().text("reason"), expected);
    }
}

#[test]
fn max_sessions_of_a_server() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let service = Service::start();
        let limits = [&args[..], &["--max-sessions", "1", "--timeout", "0.3"]].concat();
        let mut server = Sidecar::server(&service.addr, KEY, &limits);
        let client = Sidecar::client(&server.addr, KEY, &args);
        let mut first = open(&client.addr);
        assert_reset_without_a_byte(&client.addr);
        let rejected = format!("{:?}", server.next());
        let reasons = ["not ready in time for an authenticated peer", "too many sessions"];
        assert!(reasons.iter().any(|reason| rejected.contains(reason)), "{rejected}");
        assert_eq!(service.connections(), 1);
        assert_eq!(finish(&mut first), "0 bytes");
        assert_eq!(server.ended().text("reason"), "completed");
        echo(&mut open(&client.addr), b"hello");
    }
}

/// On the client's side, connections over the limit wait without a deadline.
#[test]
fn max_sessions_of_a_client() {
    let service = Service::start();
    let server = Sidecar::server(&service.addr, KEY, &[]);
    let mut client = Sidecar::client(&server.addr, KEY, &["--max-sessions", "1"]);
    let mut first = open(&client.addr);
    let mut waiting = connect(&client.addr);
    // Long enough for a handshake, if the connection were accepted.
    (0..500).for_each(|_| echo(&mut first, b"round"));
    assert_eq!(service.connections(), 1);
    assert_eq!(finish(&mut first), "2500 bytes");
    let ended = client.ended();
    assert_eq!(ended.text("peer"), first.get_ref().local_addr().unwrap().to_string());
    assert_eq!((ended.number("to_target"), ended.number("from_target")), (2500, 2516));
    assert_eq!(ended.text("reason"), "completed");
    // The one that waited is served now.
    let mut line = [0; 6];
    waiting.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    drop(waiting);
    client.ended();
}

/// Keys are replaced while the program runs. The sessions of a key that was removed end at once.
#[test]
fn key_replacement() {
    for mechanism in MECHANISMS {
        let (_service, mut server, mut client) = pair(mechanism, &[]);
        let mut before = open(&client.addr);

        assert_eq!(server.replace(OTHER_KEY).number("keys"), 1);
        assert_eq!(read_until_reset(&mut before), b"");
        assert_eq!(server.ended().text("reason"), "the key was revoked");
        assert_reset_without_a_byte(&client.addr);
        assert!(server.failure().contains("handshake refused"));

        assert_eq!(client.replace(OTHER_KEY).number("keys"), 1);
        let mut after = open(&client.addr);
        echo(&mut after, b"hello");

        // An invalid file changes nothing.
        let unchanged = server.replace("not hexadecimal");
        assert_eq!(unchanged.message(), "keys unchanged");
        assert!(unchanged.text("error").contains(", line 1: "), "{unchanged:?}");
        echo(&mut after, b"still open");
        echo(&mut open(&client.addr), b"hello");
    }
}

/// Another key is added: the sessions of the first one continue.
#[test]
fn added_key_keeps_sessions() {
    let (_service, mut server, client) = pair("noise", &[]);
    let mut before = open(&client.addr);
    assert_eq!(server.replace(&format!("{KEY}\nbob:{OTHER_KEY}")).number("keys"), 2);
    echo(&mut before, b"still open");
    echo(&mut open(&client.addr), b"hello");
}
