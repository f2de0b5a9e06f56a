//! Several targets in turn, failover, and targets that are names.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixListener;

use crate::support::service::{Service, assert_reset_without_a_byte, connect, echo, finish, open};
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar};

/// Starts a side with several targets.
fn start(side: &str, targets: &[&str], args: &[&str]) -> Sidecar {
    let targets: Vec<_> = targets.iter().flat_map(|target| ["--target", target]).collect();
    Sidecar::start_with(&|command| command, side, &targets, KEY, args)
}

/// Returns an address that refuses connections.
fn refusing() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn sessions_take_turns() {
    let services = [Service::start(), Service::start(), Service::start()];
    let addrs = services.each_ref().map(|service| &*service.addr);
    let server = start("server", &addrs, &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    for _ in 0..9 {
        assert_eq!(finish(&mut open(&client.addr)), "0 bytes");
    }
    assert_eq!(services.each_ref().map(Service::connections), [3, 3, 3]);
}

#[test]
fn refusing_targets_are_skipped() {
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let (dead, service) = (refusing(), Service::start());
        let server = start("server", &[&dead, &service.addr, "/nonexistent/socket"], &args);
        // Both sides have several targets.
        let client = start("client", &[&refusing(), &server.addr], &args);
        for _ in 0..6 {
            echo(&mut open(&client.addr), b"hello");
        }
        assert_eq!(service.connections(), 6);
    }
}

#[test]
fn every_refusal_is_logged_if_no_target_accepts() {
    let dead = [refusing(), refusing()];
    let mut server = start("server", &[&dead[0], &dead[1], "@challenge-proxy-nobody"], &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    let cause = TcpStream::connect(&dead[0]).unwrap_err();
    let reason = format!(
        "cannot connect to {}: {cause}, {}: {cause}, @challenge-proxy-nobody: {cause}",
        dead[0], dead[1]
    );
    assert_eq!(server.ended().text("reason"), reason);
}

/// A target that never answers takes its share of the time only.
#[test]
fn silent_target_is_skipped() {
    // Its queue is full, so that the kernel drops further connections.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let silent = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&silent, std::time::Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 100);
    }

    let service = Service::start();
    let args = ["--connect-timeout", "0.4"];
    let server = start("server", &[&silent.to_string(), &service.addr], &args);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    for _ in 0..2 {
        echo(&mut open(&client.addr), b"hello");
    }

    let mut server = start("server", &[&silent.to_string()], &args);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    assert_eq!(server.ended().text("reason"), format!("cannot connect to {silent}: timed out"));
}

/// Whichever of its addresses the service listens on.
#[test]
fn name_with_several_addresses() {
    for addr in ("localhost", 0).to_socket_addrs().unwrap() {
        let service = Service::on(TcpListener::bind(addr).unwrap());
        let port = service.addr.rsplit(':').next().unwrap();
        let server = Sidecar::server(&format!("localhost:{port}"), KEY, &["--listen", "localhost:0"]);
        let port = server.addr.rsplit(':').next().unwrap();
        let client = Sidecar::client(&format!("localhost:{port}"), KEY, &[]);
        echo(&mut open(&client.addr), b"hello");
        assert_eq!(service.connections(), 1);
    }
}

#[test]
fn name_that_does_not_resolve() {
    let mut client = Sidecar::client("name.invalid:80", KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    let ended = client.ended();
    assert!(ended.text("reason").starts_with("cannot connect to name.invalid:80: "), "{ended:?}");
}

/// IPv6 on both sides.
#[test]
fn ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let service = Service::on(listener);
    let server = Sidecar::server(&service.addr, KEY, &["--listen", "[::1]:0"]);
    let client = Sidecar::client(&server.addr, KEY, &["--listen", "[::1]:0"]);
    echo(&mut open(&client.addr), b"hello");
}

/// The prefix `unix:` and a Unix socket among the targets.
#[test]
fn unix_socket_after_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service");
    let listener = UnixListener::bind(&path).unwrap();
    let server = start("server", &[&refusing(), &format!("unix:{}", path.display())], &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    let _stream = connect(&client.addr);
    listener.accept().unwrap();
}
