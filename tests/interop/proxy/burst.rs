//! Many sessions at once through one client sidecar, whose handshakes all come from one address.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::process::set_descriptor_limit;
use crate::proxy_pair::{KEY, Proxy};

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
async fn assert_burst_lives(sessions: usize, server_args: &[&str]) {
    set_descriptor_limit(std::process::id(), 4_096);
    let service = echo_service().await;
    let server = Proxy::server(&service.to_string(), KEY, server_args);
    let relay = slow_relay(server.addr.parse().unwrap()).await;
    let client = Proxy::client(&relay.to_string(), KEY, &[]);
    let addr = client.addr.parse().unwrap();

    let opened = join_all((0..sessions).map(|_| open(addr)));
    let opened = timeout(Duration::from_secs(30), opened).await.expect("all sessions begin or fail");
    let mut live: Vec<_> = opened.into_iter().flatten().collect();
    assert_eq!(live.len(), sessions);
    let again = join_all(live.iter_mut().map(ping)).await;
    assert!(again.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_sessions_of_a_burst_live() {
    assert_burst_lives(400, &[]).await;
}

/// The smallest default of a server whose limit of open files is low.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_fits_a_small_server() {
    assert_burst_lives(200, &["--max-pending", "128", "--max-sessions", "300"]).await;
}
