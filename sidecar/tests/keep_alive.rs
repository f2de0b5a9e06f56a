//! Keep-alive on all sockets of both sides, as the kernel shows it.

use std::thread::sleep;
use std::time::Duration;

use crate::process::Running;
use crate::support::service::{Service, echo, open};
use crate::support::sidecar::{KEY, Sidecar};

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The socket that was accepted on this port.
    Accepted(u16),
    /// The socket that connected to this port.
    Connected(u16),
}

/// Returns the inodes of the sockets of a process.
fn sockets(process: &Running) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let inode = |link: std::path::PathBuf| {
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    links.filter_map(inode).collect()
}

/// Returns after how much time an established connection sends its next keep-alive probe, if keep-alive is on.
fn keepalive(process: &Running, end: End) -> Option<Duration> {
    const ESTABLISHED: &str = "01";
    for _ in 0..500 {
        let own = sockets(process);
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let timer = table.lines().skip(1).find_map(|line| {
            // The number, the local and the remote address, the state, the queues, the timer and its end; further on the
            // inode.
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = |at: usize| u16::from_str_radix(&fields[at][9..], 16).unwrap();
            let found = match end {
                End::Accepted(local) => port(1) == local,
                End::Connected(remote) => port(2) == remote,
            };
            (found && fields[3] == ESTABLISHED && own.iter().any(|inode| inode == fields[9]))
                .then(|| fields[5].to_owned())
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
        let server = Sidecar::server(&service.addr, KEY, args);
        let client = Sidecar::client(&server.addr, KEY, args);
        let mut session = open(&client.addr);
        echo(&mut session, b"hello");
        let sides = [
            (&client.running, [End::Accepted(port(&client.addr)), End::Connected(port(&server.addr))]),
            (&server.running, [End::Accepted(port(&server.addr)), End::Connected(port(&service.addr))]),
        ];
        for (process, end) in sides.iter().flat_map(|(process, ends)| ends.map(|end| (process, end))) {
            let probe = keepalive(process, end).map(|time| time.as_millis().div_ceil(1000));
            let expected = seconds.as_ref().map(|range| probe.is_some_and(|probe| range.contains(&probe)));
            assert_eq!(expected, probe.map(|_| true), "{args:?}, {end:?}: {probe:?}");
        }
    }
}
