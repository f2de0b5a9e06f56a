//! One absolute deadline, whatever a peer does with its time, and what a refused peer gets to read.
#![cfg(feature = "net")]

mod support;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use support::{ACCEPTED, REFUSED, acceptor, answer_by_hand, connector, read_array, read_verdict};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower_challenge::HandshakeErrorKind::{ClosedEarly, Refused, Shed, ShuttingDown, TimedOut};
use tower_challenge::transport::TransportInfo;
use tower_challenge::{Admission, DEFAULT_TIMEOUT, Transport};

#[tokio::test(start_paused = true)]
async fn silence() {
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
async fn a_byte_a_second_does_not_put_it_off() {
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
async fn a_peer_that_does_not_read_is_timed_out_in_the_middle_of_a_write() {
    let (_client, server) = duplex(5);
    let begin = Instant::now();
    assert_eq!(acceptor(&["key"]).accept(server).await.unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
}

/// It has been refused, and that is what is reported, but it holds the connection no longer than anybody else.
#[tokio::test(start_paused = true)]
async fn a_refused_peer_that_stays_is_cut_off_at_the_deadline() {
    let (mut client, server) = duplex(64);
    let begin = Instant::now();
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    answer_by_hand(&mut client, "wrong").await;
    assert_eq!(read_verdict(&mut client).await, REFUSED);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
    assert!(client.write_all(b"x").await.is_err(), "closed by the time it is reported");
}

/// A stream that always has data uses up the task's budget, and a timer that asks for some of it is never ready.
#[tokio::test]
async fn a_peer_that_floods_a_codec_that_skips_is_cut_off_in_time() {
    use tower_challenge::HandshakeError;
    use tower_challenge::mechanism::{Handshake, Input, Mechanism, NoLookup, Reject, Server, Start, Step};

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
        type Role = Server;
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
        const LONGEST_RECEIVED: usize = 1;
        const LONGEST_SENT: usize = 1;

        fn step(&mut self, _: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
            unreachable!("nothing is ever decoded")
        }
    }

    let zeros = || tokio::io::join(tokio::io::repeat(0), tokio::io::sink());
    let admission = Admission::builder().max_pending(1).build();
    let acceptor = tower_challenge::Acceptor::new(Waits)
        .inspect(|_: &tokio::io::Join<_, _>| TransportInfo::new())
        .admission(admission.clone());
    let in_time = |accept| tokio::time::timeout(Duration::from_secs(30), tokio::spawn(accept));
    let outcome = in_time(acceptor.clone().timeout(Duration::from_millis(100)).accept(zeros())).await;
    assert_eq!(outcome.expect("it ends").unwrap().unwrap_err().kind(), TimedOut);

    // The same where its place is given to somebody else.
    let flood = in_time(acceptor.timeout(Duration::from_secs(3600)).accept(zeros()));
    let newcomer = async {
        sleep(Duration::from_millis(10)).await;
        admission.admit(Some([192, 0, 2, 1].into())).unwrap()
    };
    let (outcome, _newcomer) = tokio::join!(flood, newcomer);
    assert_eq!(outcome.expect("it ends").unwrap().unwrap_err().kind(), Shed);
}

/// What a stream without an end costs: the limit, and a little.
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
async fn a_refused_peer_that_floods_is_cut_off_after_so_many_bytes() {
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

/// A close with unread data would have the kernel send a reset, and the verdict be lost.
#[tokio::test]
async fn a_refused_peer_reads_its_verdict_also_with_data_behind_its_answer() {
    for pipelined in [0, 1, 1000, 60_000] {
        let (mut client, server) = tcp_pair().await;
        let server = tokio::spawn(acceptor(&["key"]).accept(server));
        read_array::<32>(&mut client).await;
        client.write_all(&vec![0; 16 + pipelined]).await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, REFUSED);
        // It still listens: had it closed, the first write would be answered by a reset, and a later one fail.
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
async fn a_refused_peer_that_writes_while_it_reads_still_reads_its_verdict() {
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

/// A server that has said no and gone before it read the answer: our write fails, and its verdict is there to be read.
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
async fn a_client_whose_answer_can_not_be_written_reads_why() {
    for (verdict, kind, source) in [
        (REFUSED, Refused, None),
        ("", ClosedEarly, Some("broken pipe")),
        // It can't have read the answer that it accepts.
        (ACCEPTED, ClosedEarly, Some("broken pipe")),
    ] {
        let (client, mut server) = duplex(64);
        server.write_all(&[7; 32]).await.unwrap();
        server.write_all(verdict.as_bytes()).await.unwrap();
        drop(server);
        let error = connector("key").connect(ClosedForWriting(client)).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        let found = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(found.as_deref(), source);
    }
}

#[tokio::test]
async fn a_server_whose_peer_is_gone_reports_that_it_was_refused() {
    let (mut client, server) = duplex(64);
    let server = tokio::spawn(acceptor(&["key"]).accept(server));
    answer_by_hand(&mut client, "wrong").await;
    drop(client);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_it_at_once_and_a_session_can_see_it() {
    let token = tokio_util::sync::CancellationToken::new();
    let given = token.clone();
    let acceptor = acceptor(&["key"])
        .inspect(move |_: &tokio::io::DuplexStream| TransportInfo::new().shutdown(given.clone()));

    let (client, server) = duplex(64);
    let (session, _client) = tokio::join!(acceptor.accept(server), connector("key").connect(client));
    let session = session.unwrap();
    let (_pending_client, server) = duplex(64);
    let pending = tokio::spawn(acceptor.accept(server));
    let (mut refused_client, server) = duplex(64);
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
