//! Sessions that end because they are idle, or because their key was revoked: with a reset on both sides.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::http::wait_for_metric;
use crate::support::service::{Service, connect, echo, open, read_until_reset};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar, pair};

/// A session between a client and a target that the test plays, with the arguments of both sides.
fn session(server_args: &[&str], client_args: &[&str]) -> (TcpStream, TcpStream, Sidecar, Sidecar) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = Sidecar::server(&listener.local_addr().unwrap().to_string(), KEY, server_args);
    let near = Sidecar::client(&far.addr, KEY, client_args);
    let client = connect(&near.addr).into_inner();
    let (target, _) = listener.accept().unwrap();
    target.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (client, target, near, far)
}

#[test]
fn idle_session_is_reset_on_both_sides() {
    let idle = ["--idle-timeout", "0.3"];
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let with_timeout = [&args[..], &idle].concat();
        for (server_args, client_args) in [(&with_timeout[..], &args[..]), (&args, &with_timeout)] {
            let begin = Instant::now();
            let (mut client, mut target, mut near, mut far) = session(server_args, client_args);
            assert_eq!(read_until_reset(&mut client), b"", "{mechanism}");
            assert_eq!(read_until_reset(&mut target), b"", "{mechanism}");
            let elapsed = begin.elapsed();
            assert!(elapsed >= Duration::from_millis(300), "{elapsed:?}");
            let (idle, other) =
                if server_args.len() > args.len() { (&mut far, &mut near) } else { (&mut near, &mut far) };
            assert_eq!(idle.ended().text("reason"), "idle for too long");
            assert_ne!(other.ended().text("reason"), "completed");
        }
    }
}

/// Traffic in one direction is enough.
#[test]
fn traffic_keeps_a_session() {
    let args = ["--idle-timeout", "0.5"];
    let (mut client, mut target, _near, mut far) = session(&args, &[]);
    let begin = Instant::now();
    let mut rounds = 0;
    // Three times as long as the timeout, in steps of a part of it.
    while begin.elapsed() < Duration::from_millis(1_500) {
        let (from, to) = if rounds < 5 { (&mut client, &mut target) } else { (&mut target, &mut client) };
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        rounds += 1;
    }
    assert_eq!(read_until_reset(&mut client), b"");
    assert_eq!(far.ended().text("reason"), "idle for too long");
}

/// After one direction was closed as well.
#[test]
fn half_closed_session_can_be_idle() {
    let (client, mut target, _near, mut far) = session(&["--idle-timeout", "0.3"], &[]);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(target.read(&mut [0]).unwrap(), 0);
    assert_eq!(far.ended().text("reason"), "idle for too long");
    assert_eq!(read_until_reset(&mut &client), b"");
}

#[test]
fn revocation_resets_sessions_within_two_seconds() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let (mut client, mut target, mut near, mut far) = session(&args, &args);
        let begin = Instant::now();
        far.revoke();
        assert_eq!(read_until_reset(&mut client), b"", "{mechanism}");
        assert_eq!(read_until_reset(&mut target), b"", "{mechanism}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        let ended = far.ended();
        assert_eq!((ended.text("reason"), ended.text("user.id")), ("the key was revoked", "alice"));
        assert!(near.ended().text("reason").starts_with("server: "));
    }
}

/// Also of a session whose peers do not take what is sent.
#[test]
fn revocation_resets_blocked_sessions() {
    let args = ["--admin", "127.0.0.1:0"];
    let (mut client, target, _near, mut far) = session(&args, &[]);
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Until all buffers are full.
    let chunk = vec![0; 64 * 1024];
    while client.write(&chunk).is_ok() {}
    let begin = Instant::now();
    far.revoke();
    assert_eq!(far.ended().text("reason"), "the key was revoked");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    wait_for_metric(far.admin(), "challenge_proxy_sessions_open", &[], 0);
    drop(target);
}

#[test]
fn grace_delays_revocation() {
    for mechanism in MECHANISMS {
        let (_service, mut server, client) = pair_with_grace(mechanism);
        let mut session = open(&client.addr);
        server.revoke();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(700) {
            echo(&mut session, b"still open");
        }
        assert_eq!(read_until_reset(&mut session), b"");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        assert_eq!(server.ended().text("reason"), "the key was revoked");
    }
}

fn pair_with_grace(mechanism: &str) -> (Service, Sidecar, Sidecar) {
    let service = Service::start();
    let args = ["--mechanism", mechanism];
    let server = Sidecar::server(&service.addr, KEY, &[&args[..], &["--revoked-grace", "1.5"]].concat());
    let client = Sidecar::client(&server.addr, KEY, &args);
    (service, server, client)
}

/// Sessions of other keys are not affected.
#[test]
fn sessions_of_other_keys_survive_a_revocation() {
    let (_service, mut server, client) = pair("noise", &[]);
    let both = format!("{KEY}\nbob:{OTHER_KEY}");
    server.replace(&both);
    let bob = Sidecar::client(&server.addr, &both, &["--key-id", "bob"]);
    let (mut of_alice, mut of_bob) = (open(&client.addr), open(&bob.addr));
    server.revoke();
    assert_eq!(read_until_reset(&mut of_alice), b"");
    echo(&mut of_bob, b"still open");
}
