//! The absolute deadline, whatever a peer does within it, and the verdict that a refused peer reads.
#![cfg(feature = "net")]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower_challenge::HandshakeErrorKind::{Evicted, Refused, ShuttingDown, TimedOut, UnexpectedEof};
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{Admission, DEFAULT_TIMEOUT, Transport};

use crate::support::{ACCEPTED, REFUSED, acceptor, answer_by_hand, connector, read_array, read_verdict};

#[tokio::test(start_paused = true)]
async fn silent_peer_is_timed_out() {
    let (_client, server) = duplex(64);
    let begin = Instant::now();
    assert_eq!(acceptor(&["key"]).accept(server).await.unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);

    let (client, _server) = duplex(64);
    let begin = Instant::now();
    let connector = connector("key").timeout(Duration::from_secs(3));
    assert_eq!(connector.connect(client).await.unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn byte_per_second_does_not_extend_the_deadline() {
    let (mut client, server) = duplex(64);
    let begin = Instant::now();
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    read_array::<32>(&mut client).await;
    tokio::spawn(async move {
        while client.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    assert_eq!(server.await.unwrap().unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn peer_that_does_not_read_is_timed_out_during_a_write() {
    let (_client, server) = duplex(5);
    let begin = Instant::now();
    assert_eq!(acceptor(&["key"]).accept(server).await.unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
}

/// The reported kind is `Refused`, and the connection is closed at the same deadline as any other.
#[tokio::test(start_paused = true)]
async fn refused_peer_that_does_not_close_is_cut_off_at_the_deadline() {
    let (mut client, server) = duplex(64);
    let begin = Instant::now();
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    answer_by_hand(&mut client, "wrong").await;
    assert_eq!(read_verdict(&mut client).await, REFUSED);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
    assert!(client.write_all(b"x").await.is_err(), "closed before the error is returned");
}

/// A stream that always has data uses up the task's budget. A timer that is subject to the budget would never be ready.
#[tokio::test]
async fn deadline_holds_in_a_flood_that_the_codec_discards() {
    use tower_challenge::HandshakeError;
    use tower_challenge::mechanism::{
        Handshake, Input, Mechanism, NoLookup, Reject, ServerRole, Start, Step,
    };

    struct SkipsZeros;

    impl tokio_util::codec::Decoder for SkipsZeros {
        type Item = ();
        type Error = HandshakeError;

        fn decode(&mut self, buf: &mut bytes::BytesMut) -> Result<Option<()>, HandshakeError> {
            buf.clear();
            Ok(None)
        }
    }

    impl tokio_util::codec::Encoder<()> for SkipsZeros {
        type Error = HandshakeError;

        fn encode(&mut self, (): (), _: &mut bytes::BytesMut) -> Result<(), HandshakeError> {
            Ok(())
        }
    }

    struct Waits;

    impl Mechanism for Waits {
        type Role = ServerRole;
        type Handshake = Waits;

        const NAME: &'static str = "waits";

        fn start(
            &self,
            _: &mut tower_challenge::mechanism::Context<'_>,
        ) -> Result<Start<Waits>, HandshakeError> {
            Ok(Start { codec: SkipsZeros, handshake: Waits, send: None })
        }
    }

    impl Handshake for Waits {
        type Codec = SkipsZeros;
        type Message = ();
        type Peer = ();
        type Lookup = NoLookup;
        type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;
        const MAX_RECV_LEN: usize = 1;
        const MAX_SEND_LEN: usize = 1;

        fn step(&mut self, _: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
            unreachable!("the codec decodes no message")
        }

        fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(
            self,
            io: IO,
            read_ahead: bytes::BytesMut,
        ) -> (IO, bytes::BytesMut) {
            (io, read_ahead)
        }
    }

    let zeros =
        || WithInfo::new(tokio::io::join(tokio::io::repeat(0), tokio::io::sink()), TransportInfo::new());
    let admission = Admission::builder().max_pending(1).build().unwrap();
    let acceptor = tower_challenge::Acceptor::new(Waits).admission(admission.clone());
    let in_time = |accept| tokio::time::timeout(Duration::from_secs(30), tokio::spawn(accept));
    let outcome = in_time(acceptor.clone().timeout(Duration::from_millis(100)).accept(zeros())).await;
    assert_eq!(outcome.expect("the handshake ends").unwrap().unwrap_err().kind(), TimedOut);

    // An eviction ends it as well.
    let flood = in_time(acceptor.timeout(Duration::from_secs(3600)).accept(zeros()));
    let newcomer = async {
        sleep(Duration::from_millis(10)).await;
        admission.admit(Some([192, 0, 2, 1].into())).unwrap()
    };
    let (outcome, _newcomer) = tokio::join!(flood, newcomer);
    assert_eq!(outcome.expect("the handshake ends").unwrap().unwrap_err().kind(), Evicted);
}

/// A stream of zeros without an end, which counts the bytes that are read.
#[derive(Debug)]
struct Flood {
    read: Arc<AtomicUsize>,
}

impl Transport for Flood {}

impl AsyncRead for Flood {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.read.fetch_add(buf.remaining(), Ordering::Relaxed);
        buf.initialize_unfilled().fill(0);
        buf.advance(buf.remaining());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn refused_peer_that_floods_is_cut_off_at_the_linger_limit() {
    let read = Arc::new(AtomicUsize::new(0));
    let error = acceptor(&["key"]).accept(Flood { read: Arc::clone(&read) }).await.unwrap_err();
    assert_eq!(error.kind(), Refused);
    let read = read.load(Ordering::Relaxed);
    assert!((64 * 1024..=68 * 1024).contains(&read), "{read} bytes read");
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// If the server closed with unread data, the kernel would send a reset, and the verdict could be lost.
#[tokio::test]
async fn refused_peer_with_pipelined_data_reads_its_verdict() {
    for pipelined in [0, 1, 1000, 60_000] {
        let (mut client, server) = tcp_pair().await;
        let server = tokio::spawn(acceptor(&["key"]).accept(server));
        read_array::<32>(&mut client).await;
        client.write_all(&vec![0; 16 + pipelined]).await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, REFUSED);
        // The server still reads. If it had closed, a reset would follow the first write, and a later one would fail.
        for _ in 0..3 {
            client.write_all(b"more").await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
        assert!(!server.is_finished());
        drop(client);
        assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    }
}

#[tokio::test]
async fn refused_peer_that_keeps_writing_reads_its_verdict() {
    let (client, server) = tcp_pair().await;
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    let (mut read, mut write) = client.into_split();
    read_array::<32>(&mut read).await;
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 10_000_000 {
            match write.write(&[0; 16 * 1024]).await {
                Ok(len) => sent += len,
                Err(_) => break,
            }
        }
        sent
    });
    assert_eq!(read_verdict(&mut read).await, REFUSED);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    flood.await.unwrap();
}

/// The client's stream to a server that sent its verdict and closed before it read the answer: writes fail, reads do
/// not.
#[derive(Debug)]
struct ClosedForWriting<IO>(IO);

impl<IO> Transport for ClosedForWriting<IO> {}

impl<IO: AsyncRead + Unpin> AsyncRead for ClosedForWriting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<IO: Unpin> AsyncWrite for ClosedForWriting<IO> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

#[tokio::test]
async fn client_whose_write_fails_reads_the_verdict() {
    for (verdict, kind, cause) in [
        (REFUSED, Refused, None),
        ("", UnexpectedEof, Some("broken pipe")),
        // The server accepts an answer that it cannot have read.
        (ACCEPTED, UnexpectedEof, Some("broken pipe")),
    ] {
        let (client, mut server) = duplex(64);
        server.write_all(&[7; 32]).await.unwrap();
        server.write_all(verdict.as_bytes()).await.unwrap();
        drop(server);
        let error = connector("key").connect(ClosedForWriting(client)).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        let found = error.get_ref().map(ToString::to_string);
        assert_eq!(found.as_deref(), cause);
        assert!(cause.is_none_or(|cause| error.to_string().ends_with(cause)), "{error}");
    }
}

#[tokio::test]
async fn refused_peer_that_has_closed_is_reported_as_refused() {
    let (mut client, server) = duplex(64);
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    answer_by_hand(&mut client, "wrong").await;
    drop(client);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_handshakes_at_once_and_is_visible_to_sessions() {
    let token = tokio_util::sync::CancellationToken::new();
    let acceptor = acceptor(&["key"]);
    let pair = || {
        let (client, server) = duplex(64);
        (client, WithInfo::new(server, TransportInfo::new().shutdown(token.clone())))
    };

    let (client, server) = pair();
    let (session, _client) = tokio::join!(acceptor.accept(server), connector("key").connect(client));
    let session = session.unwrap();
    let (_pending_client, server) = pair();
    let pending = tokio::spawn(acceptor.accept(server));
    let (mut refused_client, server) = pair();
    let refused = tokio::spawn(acceptor.accept(server));
    answer_by_hand(&mut refused_client, "wrong").await;
    assert_eq!(read_verdict(&mut refused_client).await, REFUSED);

    let begin = Instant::now();
    assert!(!session.shutdown_token().unwrap().is_cancelled());
    token.cancel();
    assert!(session.shutdown_token().unwrap().is_cancelled());
    assert_eq!(pending.await.unwrap().unwrap_err().kind(), ShuttingDown);
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), Refused);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}
