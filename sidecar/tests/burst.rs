//! Many sessions at once through one client sidecar, whose handshakes all come from one address.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::process::set_descriptor_limit;
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar};

/// How late a relay passes on what it receives, in each direction.
const DELAY: Duration = Duration::from_millis(40);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn echo_service() -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                copy(&mut read, &mut write).await
            });
        }
    });
    addr
}

/// Relays connections to `target`, like a network with a round trip of 80 ms.
async fn slow_relay(target: SocketAddr) -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let far = TcpStream::connect(target).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::join!(relay(near_read, far_write), relay(far_read, near_write));
            });
        }
    });
    addr
}

async fn relay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let (chunks, mut delayed) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buf = vec![0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buf).await {
            chunks.send((Instant::now() + DELAY, buf[..len].to_vec())).unwrap();
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = delayed.recv().await {
            sleep_until(at).await;
            // A connection that is refused ends while it is relayed.
            to.write_all(&chunk).await.unwrap_or_default();
        }
        to.shutdown().await.unwrap_or_default();
    };
    tokio::join!(reading, writing);
}

async fn open(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    ping(&mut stream).await?;
    Ok(stream)
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"PING").await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await?;
    assert_eq!(&reply, b"PING");
    Ok(())
}

/// Opens sessions at once, and asserts that all of them live at the same time.
async fn assert_burst_lives(mechanism: &str, sessions: usize, server_args: &[&str]) {
    set_descriptor_limit(std::process::id(), 8_192);
    let service = echo_service().await;
    let args = ["--mechanism", mechanism];
    let server = Sidecar::server(&service.to_string(), KEY, &[&args[..], server_args].concat());
    let relay = slow_relay(server.addr.parse().unwrap()).await;
    let client = Sidecar::client(&relay.to_string(), KEY, &args);
    let addr = client.addr.parse().unwrap();

    let opened = join_all((0..sessions).map(|_| open(addr)));
    let opened = timeout(Duration::from_secs(30), opened).await.expect("all sessions begin or fail");
    let mut live: Vec<_> = opened.into_iter().flatten().collect();
    assert_eq!(live.len(), sessions, "{mechanism}");
    let again = join_all(live.iter_mut().map(ping)).await;
    assert!(again.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_sessions_of_a_burst_live() {
    for mechanism in MECHANISMS {
        assert_burst_lives(mechanism, 400, &[]).await;
    }
}

/// The smallest default of a server whose limit of open files is low.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_fits_a_small_server() {
    for mechanism in MECHANISMS {
        assert_burst_lives(mechanism, 200, &["--max-pending", "128", "--max-sessions", "300"]).await;
    }
}

/// While the program is busy, the kernel's queue holds more than the 128 connections of `std`.
#[test]
fn queue_holds_a_burst() {
    const CONNECTIONS: usize = 400;
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    if longest.trim().parse::<usize>().unwrap() < CONNECTIONS {
        return;
    }
    set_descriptor_limit(std::process::id(), 8_192);
    let server = Sidecar::server("127.0.0.1:1", KEY, &[]);
    let addr = server.addr.parse().unwrap();
    let signal = |signal: &str| {
        let status = Command::new("kill").args([signal, &server.running.id().to_string()]).status();
        assert!(status.unwrap().success());
    };
    signal("-STOP");
    // The kernel tries again after a second.
    let connect = || std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(900));
    let queued = (0..CONNECTIONS).map_while(|_| connect().ok()).collect::<Vec<_>>().len();
    signal("-CONT");
    assert_eq!(queued, CONNECTIONS);
}
