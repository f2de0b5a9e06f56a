//! The contract of the stream: reads, writes, wake-ups, errors and the end.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;
use tower_challenge::noise::{self, Suite};
use tower_challenge::transport::Transport;
use tower_challenge::{Acceptor, Connector, Key, KeyEntry};

use crate::support::{LONG, audience, client, data, ring, session, session_over};

#[tokio::test]
async fn data_of_any_length_arrives_over_pipes_of_any_size() {
    for size in [1, 2, 100, 16_384, 70_000] {
        for len in [0, 1, 16_366, 16_367, 16_368, 50_000] {
            let (mut client, mut server) = session(size, Suite::Aes256Gcm).await;
            let sent = data(len);
            let writing = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let reading = async {
                let mut received = Vec::new();
                server.read_to_end(&mut received).await.unwrap();
                // The other direction is still open.
                server.write_all(&received).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let (answer, ()) = tokio::join!(writing, reading);
            assert!(answer == sent, "{len} bytes over a pipe of {size}");
        }
    }
}

#[tokio::test]
async fn greeting_server_and_client_that_reads_first() {
    let (mut client, mut server) = session(1, Suite::Aes256Gcm).await;
    let greeting = async {
        server.write_all(b"hello").await.unwrap();
        server.flush().await.unwrap();
        let mut answer = [0; 2];
        server.read_exact(&mut answer).await.unwrap();
    };
    let reading = async {
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.unwrap();
        client.write_all(b"hi").await.unwrap();
        client.flush().await.unwrap();
    };
    timeout(LONG, async { tokio::join!(greeting, reading) }).await.unwrap();
}

/// Each side writes more than the pipe holds before it reads, and never flushes.
#[tokio::test]
async fn writing_before_reading_without_a_flush_makes_progress() {
    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        for round in 0..20_u8 {
            stream.write_all(&[round; 1000]).await.unwrap();
            let mut received = [0; 1000];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 1000]);
        }
    }
    // A record of 1,000 bytes fits the pipe only if the other side reads meanwhile.
    let (client, server) = session(1100, Suite::Aes256Gcm).await;
    timeout(LONG, async { tokio::join!(talk(client), talk(server)) }).await.unwrap();
}

/// The reader drains what the writer has left, and the writer is woken although the reader's task polled last.
#[tokio::test]
async fn split_halves_in_two_tasks_wake_each_other() {
    let (client, server) = session(64, Suite::Aes256Gcm).await;
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let sent = Arc::new(data(300_000));
    let writes = [sent.clone(), sent.clone()];
    let [up, down] = writes;
    let tasks = [
        tokio::spawn(async move {
            client_write.write_all(&up).await.unwrap();
            client_write.shutdown().await.unwrap();
        }),
        tokio::spawn(async move {
            server_write.write_all(&down).await.unwrap();
            server_write.shutdown().await.unwrap();
        }),
    ];
    let readers = [
        tokio::spawn(async move {
            let mut all = Vec::new();
            client_read.read_to_end(&mut all).await.unwrap();
            all
        }),
        tokio::spawn(async move {
            let mut all = Vec::new();
            server_read.read_to_end(&mut all).await.unwrap();
            all
        }),
    ];
    for task in tasks {
        timeout(LONG, task).await.unwrap().unwrap();
    }
    for reader in readers {
        assert!(timeout(LONG, reader).await.unwrap().unwrap() == *sent);
    }
}

#[tokio::test]
async fn dropped_stream_is_no_clean_end() {
    let (mut client, mut server) = session(1024, Suite::Aes256Gcm).await;
    client.write_all(b"part one").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut received = Vec::new();
    let error = server.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((error.kind(), &received[..]), (ErrorKind::UnexpectedEof, &b"part one"[..]));
    assert!(error.to_string().contains("without a CLOSE"), "{error}");
    // Both directions have ended, and no CLOSE is sent.
    assert!(server.write_all(b"x").await.is_err());
    assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn vectored_writes_are_gathered_into_one_record() {
    use std::io::IoSlice;

    let (mut client, mut server) = session(64 * 1024, Suite::Aes256Gcm).await;
    assert!(client.is_write_vectored());
    let parts = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"record")];
    assert_eq!(client.write_vectored(&parts).await.unwrap(), 10);
    client.flush().await.unwrap();
    let mut received = [0; 64];
    let len = server.read(&mut received).await.unwrap();
    assert_eq!(&received[..len], b"one record");
}

#[tokio::test]
async fn shutdown_after_a_lost_write_is_an_error() {
    // The record fits the pipe, or not.
    for size in [4096, 64] {
        let (mut client, server) = session(size, Suite::Aes256Gcm).await;
        drop(server);
        let written = client.write_all(b"important").await.unwrap_err();
        assert_eq!(written.kind(), ErrorKind::BrokenPipe);
        assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(client.flush().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
    let (mut client, server) = session(64, Suite::Aes256Gcm).await;
    assert_eq!(client.write(&[0; 1000]).await.unwrap(), 1000);
    drop(server);
    assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// A peer that has said its end may close the connection without a wait for the other one.
#[tokio::test]
async fn lost_close_after_the_peers_is_no_error() {
    for size in [4096, 10] {
        let (mut client, mut server) = session(size, Suite::Aes256Gcm).await;
        let mut byte = [0];
        let (_, ended) = tokio::join!(client.shutdown(), server.read(&mut byte));
        assert_eq!(ended.unwrap(), 0);
        drop(client);
        server.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
        assert!(server.write_all(b"x").await.is_err());
    }
    // It is one if there were data that the peer may not have read.
    for size in [64, 4096] {
        let (mut client, mut server) = session(size, Suite::Aes256Gcm).await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(server.write(&[0; 1000]).await.unwrap(), 1000);
        drop(client);
        assert_eq!(server.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn received_data_can_be_read_after_a_failed_write() {
    let (mut client, mut server) = session(4096, Suite::Aes256Gcm).await;
    server.write_all(b"413 too large").await.unwrap();
    server.shutdown().await.unwrap();
    drop(server);
    assert_eq!(client.write_all(b"body").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"413 too large");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(client.write_all(b"body").await.is_err());
}

#[tokio::test]
async fn parked_reader_sends_what_a_write_of_another_task_left() {
    let (client, mut server) = session(64, Suite::Aes256Gcm).await;
    let (mut read, mut write) = tokio::io::split(client);
    let reader = tokio::spawn(async move { read.read_exact(&mut [0; 4]).await.map(drop) });
    tokio::task::yield_now().await;
    tokio::spawn(async move { write.write_all(&[1; 1000]).await.unwrap() }).await.unwrap();
    let mut received = [0; 1000];
    timeout(LONG, server.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, [1; 1000]);
    server.write_all(b"done").await.unwrap();
    timeout(LONG, reader).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn bytes_that_are_taken_from_writes_are_bounded_while_the_peer_does_not_read() {
    for len in [1, 1000, 16_367, 16_368, 40_000, 1 << 20] {
        let (mut client, _server) = session(64, Suite::Aes256Gcm).await;
        let (buf, mut taken) = (vec![0; len], 0);
        while let Some(written) = client.write(&buf).now_or_never() {
            taken += written.unwrap();
        }
        assert!(taken <= 100_000, "{taken} in writes of {len}");
    }
}

#[tokio::test]
async fn revoked_session_ends_without_a_close() {
    for waits in [false, true] {
        let (near, far) = duplex(4096);
        let keys = ring();
        let acceptor = Acceptor::new(noise::Server::new(keys.clone(), audience()));
        let acceptor = acceptor.end_revoked_sessions(Duration::ZERO);
        let connector = Connector::new(client());
        let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(near));
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        server.write_all(b"transfer 10 ").await.unwrap();
        server.flush().await.unwrap();
        keys.replace([KeyEntry::new("bob", Key::new([8; 32]).unwrap()).unwrap()]).unwrap();
        if waits {
            // The end of a session is a timer.
            let _ = server.flush().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(server.write_all(b"NOT").await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        }
        let closed = server.shutdown().await;
        drop(server);
        let mut received = Vec::new();
        let ended = client.read_to_end(&mut received).await.map_err(|error| error.kind());
        assert_eq!(received, b"transfer 10 ");
        // The end is a clean one only if there was no error.
        assert_eq!(closed.is_ok(), ended.is_ok());
        if waits {
            assert_eq!(closed.unwrap_err().kind(), ErrorKind::ConnectionAborted);
            assert_eq!(ended, Err(ErrorKind::UnexpectedEof));
        }
    }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn completed_write_wakes_no_task() {
    let (mut client, _server) = session(65_536, Suite::Aes256Gcm).await;
    let wakes = Arc::new(Count(AtomicUsize::new(0)));
    let counting = Waker::from(Arc::clone(&wakes));
    let cx = &mut Context::from_waker(&counting);
    assert!(Pin::new(&mut client).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending());
    assert!(Pin::new(&mut client).poll_write(cx, b"x").is_ready());
    assert!(Pin::new(&mut client).poll_flush(cx).is_ready());
    assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
}

/// A pipe that takes and gives one byte at a time, is not ready every other time, and fails if it is told to.
struct Rough {
    io: DuplexStream,
    is_ready: [bool; 2],
    fails: Arc<AtomicBool>,
}

impl Rough {
    fn new(io: DuplexStream) -> Self {
        Self { io, is_ready: [false; 2], fails: Arc::default() }
    }

    fn poll_ready(&mut self, direction: usize, cx: &Context<'_>) -> Poll<()> {
        self.is_ready[direction] = !self.is_ready[direction];
        if self.is_ready[direction] {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::new(ErrorKind::HostUnreachable, "cable was cut"));
        }
        Ok(())
    }
}

impl Transport for Rough {}

impl AsyncRead for Rough {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_ready(0, cx));
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        std::task::ready!(self.poll_ready(1, cx));
        Pin::new(&mut self.io).poll_write(cx, &buf[..1])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn data_arrives_byte_by_byte_over_a_transport_that_is_often_not_ready() {
    let (near, far) = duplex(3);
    let (client, server) = session_over(Rough::new(near), Rough::new(far), Suite::ChaCha20Poly1305).await;
    let sent = Arc::new(data(20_000));
    let mut tasks = tokio::task::JoinSet::new();
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let [up, down] = [Arc::clone(&sent), Arc::clone(&sent)];
    tasks.spawn(async move {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
        Vec::new()
    });
    tasks.spawn(async move {
        server_write.write_all(&down).await.unwrap();
        server_write.shutdown().await.unwrap();
        Vec::new()
    });
    tasks.spawn(async move {
        let mut all = Vec::new();
        client_read.read_to_end(&mut all).await.unwrap();
        all
    });
    tasks.spawn(async move {
        let mut all = Vec::new();
        server_read.read_to_end(&mut all).await.unwrap();
        all
    });
    let all = timeout(LONG, tasks.join_all()).await.unwrap();
    assert_eq!(all.iter().filter(|all| **all == *sent).count(), 2);
}

#[tokio::test]
async fn errors_of_writing_are_reported_once_as_they_are_and_then_with_their_text() {
    for noticed_by_read in [false, true] {
        let (near, far) = duplex(4096);
        let near = Rough::new(near);
        let fails = Arc::clone(&near.fails);
        let (mut client, mut server) = session_over(near, far, Suite::Aes256Gcm).await;
        server.write_all(b"reason").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.write(b"left").await.unwrap(), 4);
        fails.store(true, Ordering::SeqCst);
        if noticed_by_read {
            let mut received = [0; 6];
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"reason");
        }
        let first = client.flush().await.unwrap_err();
        assert_eq!((first.kind(), &*first.to_string()), (ErrorKind::HostUnreachable, "cable was cut"));
        fails.store(false, Ordering::SeqCst);
        for error in [client.write(b"x").await.unwrap_err(), client.shutdown().await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            assert!(error.to_string().contains("cable was cut"), "{error}");
        }
    }
}

#[tokio::test]
async fn errors_of_the_transports_flush_and_shutdown_are_final() {
    for shuts_down in [false, true] {
        let (near, far) = duplex(4096);
        let near = Rough::new(near);
        let fails = Arc::clone(&near.fails);
        let (mut client, _server) = session_over(near, far, Suite::Aes256Gcm).await;
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
        fails.store(true, Ordering::SeqCst);
        let failed = if shuts_down { client.shutdown().await } else { client.flush().await };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::HostUnreachable);
        fails.store(false, Ordering::SeqCst);
        assert!(client.write(b"x").await.is_err());
        assert!(client.flush().await.is_err());
        assert!(client.shutdown().await.is_err());
    }
}

#[tokio::test]
async fn reads_flush_a_transport_that_buffers() {
    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        for round in 0..3_u8 {
            stream.write_all(&[round; 100]).await.unwrap();
            let mut received = [0; 100];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 100]);
        }
    }
    let (near, far) = duplex(64);
    let (client, server) = session_over(BufStream::new(near), BufStream::new(far), Suite::Aes256Gcm).await;
    timeout(LONG, async { tokio::join!(talk(client), talk(server)) }).await.unwrap();
}

/// A socket's second shutdown is an error, if the peer has closed it in between.
#[tokio::test]
async fn repeated_shutdown_does_not_reach_the_transport() {
    let (near, far) = duplex(4096);
    let near = Rough::new(near);
    let fails = Arc::clone(&near.fails);
    let (mut client, mut server) = session_over(near, far, Suite::Aes256Gcm).await;
    client.shutdown().await.unwrap();
    fails.store(true, Ordering::SeqCst);
    client.shutdown().await.unwrap();
    assert_eq!(client.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
}
