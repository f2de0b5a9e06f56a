//! Health checks and port scans at the server's side.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::{Service, assert_closed_without_a_byte, echo, open};
use crate::proxy_pair::{KEY, Proxy};

/// The log's line about probes, before their number.
const PROBES: &str = "closed before the peer sent anything: ";

/// Connects and closes at once.
fn probe(addr: &str) {
    let mut stream = TcpStream::connect(addr).unwrap();
    // The server has accepted the connection.
    stream.read_exact(&mut [0; 35]).unwrap();
}

/// A failed handshake, with a penalty of 10 seconds.
fn fail(addr: &str) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap_or_default();
}

/// A load balancer that checks the server's health, on the address of the clients.
#[test]
fn probes_are_one_line_and_no_penalty() {
    let service = Service::start();
    let mut server = Proxy::server(&service.addr, KEY, &["--penalties"]);
    let client = Proxy::client(&server.addr, KEY, &[]);
    for _ in 0..25 {
        probe(&server.addr);
    }
    echo(&mut open(&client.addr), b"hello");

    let line = server.running.line_with(PROBES);
    assert!(line.ends_with(&format!("{PROBES}1 connections, the last one from 127.0.0.1")), "{line}");
    drop(client);
    server.running.terminate();
    let lines = server.running.rest();
    let others: Vec<_> = lines.iter().filter(|line| line.contains(PROBES)).collect();
    assert_eq!(others, [&format!("{PROBES}24 connections")], "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("handshake")), "{lines:?}");
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
        let mut server = Proxy::server(&service.addr, KEY, &[&["--penalties"], args].concat());
        let client = Proxy::client(&server.addr, KEY, &[]);
        for _ in 0..2 {
            fail(&server.addr);
            server.running.line_with("malformed");
        }
        if throttled {
            assert_closed_without_a_byte(&client.addr);
            server.running.line_with("this source failed too often");
        } else {
            echo(&mut open(&client.addr), b"hello");
        }
    }
}
