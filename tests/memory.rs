//! The memory of a connection with `noise`, of Rust's and of the C code's allocations alike: pages of this process that
//! are in use, over many connections. So it needs a process of its own.
#![cfg(all(target_os = "linux", target_pointer_width = "64", feature = "noise"))]

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tower_challenge::admission::Admission;
use tower_challenge::noise::{self, Audience, Suite};
use tower_challenge::transport::Transport;
use tower_challenge::{Acceptor, Connector, Key, KeyEntry};

const CONNECTIONS: usize = 2_000;

/// Bytes that are allocated only while they are in flight. Without wake-ups: the tests poll.
type Bytes = Arc<Mutex<Vec<u8>>>;

/// One end of a pipe.
struct Pipe {
    read: Bytes,
    written: Bytes,
}

fn pipe() -> (Pipe, Pipe) {
    let (up, down) = (Bytes::default(), Bytes::default());
    (Pipe { read: Arc::clone(&down), written: Arc::clone(&up) }, Pipe { read: up, written: down })
}

impl Transport for Pipe {}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.read.lock().unwrap();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        let len = bytes.len().min(buf.remaining());
        let rest = bytes.split_off(len);
        buf.put_slice(&std::mem::replace(&mut *bytes, rest));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written.lock().unwrap().extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The bytes of anonymous memory in use.
fn in_use() -> usize {
    let all = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let anonymous = all.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    1024 * anonymous.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap()
}

/// How many bytes the values hold that `create` makes, each.
fn each<T>(mut create: impl FnMut() -> T) -> usize {
    // What is allocated once.
    drop(create());
    let mut held = Vec::with_capacity(CONNECTIONS);
    let before = in_use();
    held.resize_with(CONNECTIONS, || Box::new(create()));
    let after = in_use();
    // What is freed would be used again, without being counted.
    std::mem::forget(held);
    (after - before) / CONNECTIONS
}

#[tokio::test]
async fn memory_of_connections() {
    let key = Key::generate().unwrap();
    let entry = KeyEntry::new("alice", key).unwrap();
    let audience = Audience::new("orders").unwrap();
    let client = noise::Client::from_entry(&entry, "orders").unwrap();
    let keys = noise::KeyRing::new([entry]).unwrap();
    let admission = Admission::builder().max_pending(10 * CONNECTIONS).build().unwrap();
    let acceptor = Acceptor::new(noise::Server::new(keys, audience)).admission(admission);

    let (data, mut received) = (vec![1; 40_000], vec![0; 40_000]);

    let bare = each(pipe);
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let connector = Connector::new(client.clone().suite(suite));
        let session = || {
            let (near, far) = pipe();
            let (mut accepting, mut connecting) =
                (Box::pin(acceptor.accept(far)), Box::pin(connector.connect(near)));
            assert!(connecting.as_mut().now_or_never().is_none());
            assert!(accepting.as_mut().now_or_never().is_none());
            let client = connecting.now_or_never().unwrap().unwrap();
            (client, accepting.now_or_never().unwrap().unwrap())
        };
        // Both sides, after both have read and written.
        let idle = each(|| {
            let (mut client, mut server) = session();
            for len in [1_000, 40_000] {
                client.write_all(&data[..len]).now_or_never().unwrap().unwrap();
                server.read_exact(&mut received[..len]).now_or_never().unwrap().unwrap();
                assert!(server.read(&mut [0]).now_or_never().is_none());
                server.write_all(&data[..len]).now_or_never().unwrap().unwrap();
                client.read_exact(&mut received[..len]).now_or_never().unwrap().unwrap();
                assert!(client.read(&mut [0]).now_or_never().is_none());
            }
            (client, server)
        });
        let idle = (idle - bare) / 2;
        println!("{suite:?}: an idle stream holds {idle} bytes more than its transport");
        assert!(idle <= 1536, "{suite:?}: {idle} bytes of an idle stream");
        let waits_for_finish = each(|| {
            let (near, far) = pipe();
            let (mut accepting, mut connecting) =
                (Box::pin(acceptor.accept(far)), Box::pin(connector.connect(near)));
            assert!(connecting.as_mut().now_or_never().is_none());
            assert!(accepting.as_mut().now_or_never().is_none());
            accepting
        });
        let waits_for_finish = waits_for_finish - bare;
        println!("{suite:?}: a handshake that waits for FINISH holds {waits_for_finish} bytes more");
        assert!(waits_for_finish <= 2048, "{suite:?}: {waits_for_finish} bytes before FINISH");
    }
    let waits_for_hello = each(|| {
        let (near, far) = pipe();
        let mut accepting = Box::pin(acceptor.accept(far));
        assert!(accepting.as_mut().now_or_never().is_none());
        (near, accepting)
    });
    let waits_for_hello = waits_for_hello - bare;
    println!("a handshake that waits for HELLO holds {waits_for_hello} bytes more");
    assert!(waits_for_hello <= 2048, "{waits_for_hello} bytes before HELLO");
}
