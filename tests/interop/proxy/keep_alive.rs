//! Keep-alive on all sockets of both sides, as the kernel shows it.
#![cfg(target_os = "linux")]

use std::thread::sleep;
use std::time::Duration;

use super::{Service, echo, open};
use crate::proxy_pair::{KEY, Proxy};

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The socket that was accepted on this port.
    Accepted(u16),
    /// The socket that connected to this port.
    Connected(u16),
}

/// Returns after how much time an established connection sends its next keep-alive probe, if keep-alive is on.
fn keepalive(end: End) -> Option<Duration> {
    const ESTABLISHED: &str = "01";
    for _ in 0..500 {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let timer = table.lines().skip(1).find_map(|line| {
            // The number, the local and the remote address, the state, the queues, the timer and its end.
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = |at: usize| u16::from_str_radix(&fields[at][9..], 16).unwrap();
            let found = match end {
                End::Accepted(local) => port(1) == local,
                End::Connected(remote) => port(2) == remote,
            };
            (found && fields[3] == ESTABLISHED).then(|| fields[5].to_owned())
        });
        match timer.as_deref().and_then(|timer| timer.split_once(':')) {
            Some(("00", _)) => return None,
            // In ticks of 10 ms.
            Some(("02", end)) => {
                return Some(Duration::from_millis(10 * u64::from_str_radix(end, 16).unwrap()));
            }
            // A segment is in flight, or the connection is not established yet.
            _ => sleep(Duration::from_millis(10)),
        }
    }
    panic!("no such connection: {end:?}");
}

fn port(addr: &str) -> u16 {
    addr.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn keepalive_is_on_for_all_sockets() {
    for (args, seconds) in
        [(&[][..], Some(51..=60)), (&["--keepalive", "7"], Some(1..=7)), (&["--keepalive", "0"], None)]
    {
        let service = Service::start();
        let server = Proxy::server(&service.addr, KEY, args);
        let client = Proxy::client(&server.addr, KEY, args);
        let mut session = open(&client.addr);
        echo(&mut session, b"hello");
        let (client, server, service) = (port(&client.addr), port(&server.addr), port(&service.addr));
        for end in
            [End::Accepted(client), End::Connected(server), End::Accepted(server), End::Connected(service)]
        {
            let probe = keepalive(end).map(|time| time.as_millis().div_ceil(1000));
            let expected = seconds.as_ref().map(|range| probe.is_some_and(|probe| range.contains(&probe)));
            assert_eq!(expected, probe.map(|_| true), "{args:?}, {end:?}: {probe:?}");
        }
    }
}
