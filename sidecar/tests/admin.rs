//! The address of the metrics and the health check.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::support::http::{get, metric, wait_for_metric};
use crate::support::service::{Service, assert_reset_without_a_byte, connect, echo, finish, open};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar, pair};

const SESSIONS: &str = "challenge_proxy_sessions_total";
const OPEN: &str = "challenge_proxy_sessions_open";
const BYTES: &str = "challenge_proxy_bytes_total";

#[test]
fn metrics_follow_sessions() {
    for mechanism in MECHANISMS {
        let (_service, server, client) = pair(mechanism, &["--admin", "127.0.0.1:0"]);
        let both = [server.admin(), client.admin()];
        for admin in both {
            assert_eq!(metric(admin, OPEN, &[]), 0);
        }
        let mut first = open(&client.addr);
        let second = open(&client.addr);
        echo(&mut first, b"hello");
        for admin in both {
            wait_for_metric(admin, OPEN, &["service=\"test\""], 2);
            wait_for_metric(admin, BYTES, &["service=\"test\"", "direction=\"to_target\""], 5);
            wait_for_metric(admin, BYTES, &["service=\"test\"", "direction=\"from_target\""], 6 + 6 + 5);
        }
        assert_eq!(finish(&mut first), "5 bytes");
        socket2::SockRef::from(second.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(second);
        for admin in both {
            wait_for_metric(admin, SESSIONS, &["end=\"completed\""], 1);
            wait_for_metric(admin, SESSIONS, &["end=\"failed\""], 1);
            wait_for_metric(admin, OPEN, &[], 0);
            assert_eq!(metric(admin, SESSIONS, &[]), 2);
        }
        // Those of the library.
        let labels = [&*format!("mechanism=\"{mechanism}\""), "outcome=\"success\""];
        assert_eq!(metric(server.admin(), "challenge_handshakes_total", &labels), 2);
        // The requests for metrics are not among the connections.
        assert_eq!(metric(server.admin(), "challenge_connections_accepted_total", &[]), 2);
    }
}

#[test]
fn failures_are_counted() {
    let service = Service::start();
    let args = ["--admin", "127.0.0.1:0"];
    let mut server = Sidecar::server(&service.addr, KEY, &args);
    let client = Sidecar::client(&server.addr, OTHER_KEY, &args);
    assert_reset_without_a_byte(&client.addr);
    wait_for_metric(server.admin(), "challenge_handshakes_total", &["outcome=\"refused\""], 1);
    wait_for_metric(client.admin(), SESSIONS, &["end=\"failed\""], 1);
    assert_eq!(metric(server.admin(), SESSIONS, &[]), 0);

    let reloads = |server: &Sidecar, outcome: &str| {
        metric(
            server.admin(),
            "challenge_proxy_reloads_total",
            &["what=\"keys\"", &format!("outcome=\"{outcome}\"")],
        )
    };
    let before = reloads(&server, "ok");
    server.replace(OTHER_KEY);
    assert_eq!((reloads(&server, "ok"), reloads(&server, "error")), (before + 1, 0));
    server.replace("wrong");
    assert_eq!((reloads(&server, "ok"), reloads(&server, "error")), (before + 1, 1));
}

#[test]
fn paths_and_methods() {
    let server = Sidecar::server("127.0.0.1:1", KEY, &["--admin", "127.0.0.1:0"]);
    assert_eq!(get(server.admin(), "/healthz"), (200, "ok\n".to_owned()));
    let (status, metrics) = get(server.admin(), "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("# HELP challenge_proxy_sessions_open "), "{metrics}");
    for path in ["/", "/metrics/", "/healthz2", "/../metrics"] {
        assert_eq!(get(server.admin(), path).0, 404, "{path}");
    }
}

#[test]
fn health_check_fails_while_the_program_stops() {
    let (_service, mut server, client) = pair("noise", &["--admin", "127.0.0.1:0"]);
    let mut session = open(&client.addr);
    assert_eq!(get(server.admin(), "/healthz").0, 200);
    server.running.terminate();
    server.event("stopping");
    assert_eq!(get(server.admin(), "/healthz"), (503, "not serving\n".to_owned()));
    assert_eq!(get(server.admin(), "/metrics").0, 200);
    echo(&mut session, b"still open");
    assert_eq!(finish(&mut session), "10 bytes");
    assert!(server.running.wait().success());
}

/// Neither those that send nothing, nor those that send half a request.
#[test]
fn silent_clients_do_not_stop_it() {
    let server = Sidecar::server("127.0.0.1:1", KEY, &["--admin", "127.0.0.1:0"]);
    let mut silent: Vec<_> = (0..40).map(|_| connect(server.admin())).collect();
    for stream in silent.iter_mut().step_by(2) {
        stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nhost: ").unwrap();
    }
    let begin = Instant::now();
    assert_eq!(get(server.admin(), "/healthz").0, 200);
    // A health check of Kubernetes waits for 1 second, and three in a row may fail.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// The file system decides who may read the metrics.
#[test]
fn unix_socket_with_mode_0600() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin");
    let mut server = Sidecar::server("127.0.0.1:1", KEY, &["--admin", path.to_str().unwrap()]);
    assert_eq!(server.admin(), path.to_str().unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    server.running.terminate();
    assert!(server.running.wait().success());
    assert!(!path.exists());
}
