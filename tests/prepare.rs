//! Steps between accept and handshake: their stream, and the slot, deadline and shutdown that they share with the
//! handshake.
#![cfg(feature = "net")]

#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use HandshakeErrorKind::{
    Evicted, Malformed, Refused, ShuttingDown, SourceLimit, Throttled, TimedOut, UnexpectedEof,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};
use tower_challenge::serve::ServeError;
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{
    Acceptor, Authenticated, ChallengeLayer, Connection, DEFAULT_TIMEOUT, HandshakeError, HandshakeErrorKind,
    Identity, Incoming, Transport, one_way, serve,
};

use crate::support::{
    REFUSED, Watched, acceptor, answer_by_hand, connector, polled_in_turn, read_verdict, ring,
};

type Io = Connection<DuplexStream>;

/// A stream after [`read_preface`], with the byte that was read.
#[derive(Debug)]
struct Prefaced<IO> {
    io: IO,
    preface: u8,
}

/// A step: the peer sends one byte. `!` is an error, and `p` a panic.
async fn read_preface<IO: AsyncRead + Unpin>(mut io: IO) -> io::Result<Prefaced<IO>> {
    match io.read_u8().await? {
        b'!' => Err(io::Error::new(io::ErrorKind::InvalidData, "not a preface")),
        b'p' => panic!("requested panic"),
        preface => Ok(Prefaced { io, preface }),
    }
}

impl<IO: Transport> Transport for Prefaced<IO> {
    fn describe(&self, info: &mut TransportInfo) {
        self.io.describe(info);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefaced<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefaced<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn addr(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4711).into()
}

fn connection(addr: SocketAddr) -> (DuplexStream, Io) {
    let (client, server) = duplex(256);
    (client, Connection::new(server, addr, &CancellationToken::new()))
}

/// Creates both ends of a connection from 192.0.2.`last`.
fn from(last: u8) -> (DuplexStream, Io) {
    connection(addr(last))
}

/// Creates both ends of a connection from 192.0.2.`last`, on which the client has sent `bytes`.
async fn from_with(last: u8, bytes: &[u8]) -> (DuplexStream, Io) {
    let (mut client, io) = from(last);
    client.write_all(bytes).await.unwrap();
    (client, io)
}

/// Throttles a source after any failure that has a penalty.
fn strict() -> AdmissionBuilder {
    Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO))
}

/// Creates an acceptor without steps, and returns its admission control with it.
fn guarded(builder: AdmissionBuilder) -> (Acceptor<one_way::Server>, Admission) {
    let admission = builder.build().unwrap();
    (acceptor(&["key"]).admission(admission.clone()), admission)
}

fn kind<T>(outcome: Option<Result<T, HandshakeError>>) -> Option<HandshakeErrorKind> {
    outcome?.err().map(|error| error.kind())
}

/// Runs a handshake with a client that has a wrong key.
async fn refuse<T>(
    mut client: DuplexStream,
    accept: impl Future<Output = Result<T, HandshakeError>>,
) -> HandshakeErrorKind {
    let peer = async {
        answer_by_hand(&mut client, "wrong").await;
        assert_eq!(read_verdict(&mut client).await, REFUSED);
        drop(client);
    };
    let (outcome, ()) = tokio::join!(accept, peer);
    kind(Some(outcome)).unwrap()
}

fn is_throttled(admission: &Admission, last: u8) -> bool {
    admission.admit(Some(addr(last).ip())).map(tower_challenge::admission::Slot::release).is_err()
}

/// Reads to the end of the stream, which must come without a byte.
async fn assert_closed(client: &mut DuplexStream) {
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// A listener whose connections the test creates.
struct Accepts(mpsc::UnboundedReceiver<(DuplexStream, SocketAddr)>);

impl Listener for Accepts {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, SocketAddr)>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(Ok(accepted)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 254], 80).into())
    }
}

type Step = fn(Io) -> BoxFuture<'static, io::Result<Prefaced<Io>>>;

/// Handles a session: sends the preface back.
async fn handle(mut stream: Authenticated<Prefaced<Io>, Identity>) -> io::Result<()> {
    let preface = stream.get_ref().preface;
    stream.write_u8(preface).await
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Serve,
    Incoming,
}

const WAYS: [Way; 2] = [Way::Serve, Way::Incoming];

struct Server {
    connections: mpsc::UnboundedSender<(DuplexStream, SocketAddr)>,
    errors: mpsc::UnboundedReceiver<ServeError<SocketAddr>>,
    admission: Admission,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Server {
    /// Starts a server whose step is [`read_preface`].
    fn start(way: Way, admission: AdmissionBuilder) -> Self {
        let admission = admission.build().unwrap();
        let preface: Step = |io| Box::pin(read_preface(io));
        let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
            .admission(admission.clone())
            .prepare(preface);
        let (connections, accepts) = mpsc::unbounded_channel();
        let listener = Accepts(accepts);
        let (report, errors) = mpsc::unbounded_channel();
        let on_error = move |error| report.send(error).unwrap_or_default();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or_default() };
        let running = match way {
            Way::Serve => {
                let service = ServiceBuilder::new().layer(layer).service_fn(handle);
                let server = serve(listener, service).on_error(on_error).graceful_shutdown(stopped);
                tokio::spawn(async move {
                    server.await.unwrap();
                })
            }
            Way::Incoming => {
                let incoming =
                    Incoming::builder(listener, layer).on_error(on_error).graceful_shutdown(stopped);
                let mut incoming = incoming.start().unwrap();
                let closed = incoming.closed();
                tokio::spawn(async move {
                    while let Ok(stream) = incoming.accept().await {
                        tokio::spawn(handle(stream));
                    }
                    closed.await.unwrap();
                })
            }
        };
        Self { connections, errors, admission, stop, running }
    }

    /// Connects from 192.0.2.`last` and sends `bytes`.
    async fn connect(&self, last: u8, bytes: &[u8]) -> DuplexStream {
        let (mut client, server) = duplex(256);
        client.write_all(bytes).await.unwrap();
        self.connections.send((server, addr(last))).unwrap();
        client
    }

    /// Connects with the preface and the key, and returns what the session sends.
    async fn greeting(&self, last: u8, preface: u8) -> u8 {
        let client = self.connect(last, &[preface]).await;
        connector("key").connect(client).await.unwrap().read_u8().await.unwrap()
    }

    async fn in_flight(&self, count: usize) {
        while self.admission.pending() != count {
            yield_now().await;
        }
    }

    /// Returns the next error: the address, its kind, and its text.
    async fn error(&mut self) -> (SocketAddr, HandshakeErrorKind, String) {
        let error = self.errors.recv().await.unwrap();
        let handshake = error.handshake_error().unwrap_or_else(|| panic!("{error}"));
        (*error.addr().unwrap(), handshake.kind(), handshake.to_string())
    }

    /// Stops the server. Returns the errors that were not taken.
    async fn stop(mut self) -> Vec<HandshakeErrorKind> {
        self.stop.send(()).unwrap();
        self.running.await.unwrap();
        let mut kinds = Vec::new();
        while let Some(error) = self.errors.recv().await {
            kinds.push(error.handshake_error().unwrap().kind());
        }
        kinds
    }
}

#[tokio::test]
async fn handlers_receive_the_stream_of_the_step() {
    for way in WAYS {
        let server = Server::start(way, Admission::builder());
        assert_eq!(server.greeting(1, b'A').await, b'A', "{way:?}");
        assert_eq!(server.greeting(1, b'B').await, b'B', "{way:?}");
        assert_eq!(server.stop().await, [], "{way:?}");
    }
    let acceptor = acceptor(&["key"]).prepare(read_preface::<Io>);
    let (client, io) = from_with(1, b"C").await;
    let (_client, accepted) = tokio::join!(connector("key").connect(client), acceptor.accept(io));
    assert_eq!(accepted.unwrap().get_ref().preface, b'C');
}

#[tokio::test]
async fn failed_step_closes_the_connection_and_is_reported_once() {
    for way in WAYS {
        let mut server = Server::start(way, strict());
        assert_closed(&mut server.connect(1, b"!").await).await;
        let (from, kind, text) = server.error().await;
        assert_eq!((from, kind), (addr(1), Malformed), "{way:?}");
        assert_eq!(text, "malformed handshake message: not a preface");
        // A penalty for the source of the connection.
        assert!(is_throttled(&server.admission, 1) && !is_throttled(&server.admission, 2));
        assert_eq!(server.admission.pending(), 0);
        assert_eq!(server.greeting(2, b'A').await, b'A');
        assert_eq!(server.stop().await, [], "{way:?}");
    }
}

#[tokio::test]
async fn panic_in_a_step_is_reported_with_its_address() {
    for way in WAYS {
        let mut server = Server::start(way, strict());
        assert_closed(&mut server.connect(1, b"p").await).await;
        match server.errors.recv().await.unwrap() {
            ServeError::Panicked { addr: from, message } => {
                assert_eq!((from, &*message), (addr(1), "requested panic"));
            }
            other => panic!("{way:?}: {other}"),
        }
        assert_eq!(server.admission.pending(), 0);
        assert_eq!(server.greeting(2, b'A').await, b'A');
    }
}

#[tokio::test]
async fn peers_that_stall_in_a_step_delay_no_other_and_end_at_the_shutdown() {
    for way in WAYS {
        let mut server = Server::start(way, strict());
        let mut silent = Vec::new();
        for last in 0..50 {
            silent.push(server.connect(last, b"").await);
        }
        assert_eq!(server.greeting(100, b'A').await, b'A', "{way:?}");
        server.in_flight(50).await;

        server.stop.send(()).unwrap();
        server.running.await.unwrap();
        for client in &mut silent {
            assert_closed(client).await;
        }
        assert_eq!((server.admission.pending(), server.admission.throttled()), (0, 0), "no peer is at fault");
        for _ in 0..50 {
            let error = server.errors.recv().await.unwrap();
            assert_eq!(error.handshake_error().unwrap().kind(), ShuttingDown);
        }
        assert!(server.errors.recv().await.is_none());
    }
}

#[tokio::test]
async fn stalled_step_is_evicted_at_capacity() {
    for way in WAYS {
        let mut server = Server::start(way, Admission::builder().max_pending(2));
        let mut first = server.connect(1, b"").await;
        server.in_flight(1).await;
        let _second = server.connect(2, b"").await;
        server.in_flight(2).await;
        assert_eq!(server.greeting(3, b'A').await, b'A', "{way:?}");
        assert_closed(&mut first).await;
        let (from, kind, text) = server.error().await;
        assert_eq!((from, kind), (addr(1), Evicted), "{way:?}");
        assert!(text.ends_with(": in a step before the handshake"), "{text}");
        server.in_flight(1).await;
        assert_eq!(server.stop().await, [ShuttingDown], "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn step_and_handshake_share_one_deadline() {
    let (acceptor, admission) = guarded(strict());
    let acceptor = acceptor.prepare(read_preface::<Io>);
    let begin = Instant::now();
    let (mut client, io) = from(1);
    let error = acceptor.accept(io).await.unwrap_err();
    assert_eq!(error.to_string(), "handshake timed out: in a step before the handshake");
    assert_eq!((error.kind(), begin.elapsed()), (TimedOut, DEFAULT_TIMEOUT));
    assert_closed(&mut client).await;
    assert!(is_throttled(&admission, 1), "the penalty of a timeout");

    let begin = Instant::now();
    let (mut client, io) = from(2);
    let accept = tokio::spawn(acceptor.accept(io));
    sleep(DEFAULT_TIMEOUT * 2 / 3).await;
    client.write_all(b"A").await.unwrap();
    assert_eq!(accept.await.unwrap().unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
    drop(client);
}

/// A step that always has data uses up the task's budget. A timer that is subject to the budget would never be ready.
#[tokio::test]
async fn deadline_eviction_and_shutdown_hold_in_a_step_that_is_always_ready() {
    /// A step without an end.
    async fn swallow(mut io: WithInfo<Flood>) -> io::Result<WithInfo<Flood>> {
        loop {
            io.read_exact(&mut [0; 16]).await?;
        }
    }
    type Flood = tokio::io::Join<tokio::io::Repeat, tokio::io::Sink>;

    async fn ended<T: Send + 'static>(
        accept: impl Future<Output = Result<T, HandshakeError>> + Send + 'static,
    ) -> HandshakeErrorKind {
        let outcome = tokio::time::timeout(Duration::from_secs(30), tokio::spawn(accept)).await;
        kind(Some(outcome.expect("the step ends").unwrap())).unwrap()
    }

    let (acceptor, admission) = guarded(Admission::builder().max_pending(1));
    let acceptor = acceptor.prepare(swallow);
    let stopping = CancellationToken::new();
    let flood = || {
        let info = TransportInfo::new().shutdown(stopping.clone());
        WithInfo::new(tokio::io::join(tokio::io::repeat(0), tokio::io::sink()), info)
    };
    let in_time = acceptor.clone().timeout(Duration::from_millis(50)).accept(flood());
    assert_eq!(ended(in_time).await, TimedOut);

    let endless = acceptor.timeout(Duration::from_secs(3600));
    let newcomer = async {
        yield_now().await;
        admission.admit(None).unwrap().release();
    };
    let (kind, ()) = tokio::join!(ended(endless.accept(flood())), newcomer);
    assert_eq!(kind, Evicted);

    let stop = async {
        yield_now().await;
        stopping.cancel();
    };
    let (kind, ()) = tokio::join!(ended(endless.accept(flood())), stop);
    assert_eq!(kind, ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn failures_of_a_step_add_the_penalty_of_their_kind() {
    // The penalties are 10 s for a malformed message, 1 s for an early close, and 10 s for a timeout.
    let (acceptor, admission) = guarded(Admission::builder().penalties(Penalties::new()));
    let acceptor = acceptor.prepare(read_preface::<Io>);
    for (last, bytes, expected, until_throttled) in
        [(1, &b"!"[..], Malformed, 2), (2, b"", UnexpectedEof, 16), (3, b"", TimedOut, 16)]
    {
        for failures in 1..=until_throttled {
            let (client, io) = from_with(last, bytes).await;
            let kept = (expected != UnexpectedEof).then_some(client);
            assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), expected);
            drop(kept);
            // Each timeout takes as long as it costs, so these never add up.
            let is_last = failures == until_throttled && expected != TimedOut;
            assert_eq!(is_throttled(&admission, last), is_last, "{expected:?}, {failures}");
        }
    }
    assert_eq!(admission.pending(), 0);

    // After the step, the penalty of the handshake.
    for _ in 0..4 {
        let (client, io) = from_with(4, b"A").await;
        assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    }
    assert!(is_throttled(&admission, 4));
    let (_client, io) = from_with(4, b"A").await;
    let error = acceptor.accept(io).now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), Throttled, "without starting the step");
}

/// Otherwise a timeout around the handshake would make failures free.
#[tokio::test]
async fn dropping_a_step_at_any_await_releases_the_slot_with_a_penalty() {
    for polls in 0..40 {
        let (acceptor, admission) = guarded(strict());
        let acceptor = acceptor.prepare(read_preface::<Io>).then_prepare(read_preface::<Prefaced<Io>>);
        let (mut client, server) = duplex(1);
        let io = Connection::new(server, addr(1), &CancellationToken::new());
        let accept = acceptor.accept(io);
        let peer = async {
            client.write_all(b"AB").await.unwrap();
            connector("key").connect(client).await.unwrap()
        };
        assert_eq!(admission.pending(), 1);
        let completed = polled_in_turn(accept, peer, polls);
        assert_eq!(admission.pending(), 0, "{polls}");
        assert_eq!(admission.throttled(), usize::from(!completed), "{polls}");
    }
}

#[tokio::test]
async fn steps_run_in_the_order_in_which_they_were_set() {
    let (acceptor, _) = guarded(Admission::builder());
    let acceptor = acceptor
        .prepare(read_preface::<Io>)
        .then_prepare(read_preface::<Prefaced<Io>>)
        .then_prepare(read_preface::<Prefaced<Prefaced<Io>>>);
    let (client, io) = from_with(1, b"ABC").await;
    let (client, accepted) = tokio::join!(connector("key").connect(client), acceptor.accept(io));
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
    let stream = accepted.get_ref();
    assert_eq!([stream.io.io.preface, stream.io.preface, stream.preface], *b"ABC");
    accepted.write_all(b"hello").await.unwrap();
    drop(accepted);
    let mut greeting = String::new();
    client.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "hello");

    // The same through a layer, with `then_prepare` alone.
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
        .then_prepare(read_preface::<Io>)
        .then_prepare(read_preface::<Prefaced<Io>>);
    let (connections, accepts) = mpsc::unbounded_channel();
    let mut incoming = Incoming::builder(Accepts(accepts), layer).start().unwrap();
    let (mut client, server) = duplex(256);
    connections.send((server, addr(1))).unwrap();
    client.write_all(b"AB").await.unwrap();
    connector("key").connect(client).await.unwrap();
    let (stream, from) = incoming.accept_with_addr().await.unwrap();
    assert_eq!([stream.get_ref().io.preface, stream.get_ref().preface], *b"AB");
    assert_eq!(from, addr(1));
}

#[tokio::test(start_paused = true)]
async fn second_step_that_fails_is_the_error_of_the_handshake() {
    let (acceptor, admission) = guarded(strict());
    let acceptor = acceptor.prepare(read_preface::<Io>).then_prepare(read_preface::<Prefaced<Io>>);
    let (mut client, io) = from_with(1, b"A!").await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    assert_closed(&mut client).await;
    assert!(is_throttled(&admission, 1));
    let begin = Instant::now();
    let (_client, io) = from_with(2, b"A").await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), TimedOut);
    assert_eq!(begin.elapsed(), DEFAULT_TIMEOUT);
}

/// A step in which the peer tells the last part of its address.
async fn read_addr(mut io: Io) -> io::Result<WithInfo<Io>> {
    let last = io.read_u8().await?;
    let info = TransportInfo::from_stream(&io).peer_addr(addr(last));
    Ok(WithInfo::new(io, info))
}

#[tokio::test(start_paused = true)]
async fn address_that_a_step_reports_is_the_source_from_then_on() {
    let (acceptor, admission) = guarded(strict());
    let acceptor = acceptor.prepare(read_addr);
    let (client, io) = from_with(1, &[9]).await;
    assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    assert!(is_throttled(&admission, 9) && !is_throttled(&admission, 1));

    let (mut client, io) = from_with(1, &[9]).await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Throttled);
    assert_closed(&mut client).await;
    assert_eq!((admission.throttled(), admission.pending()), (1, 0), "which is free");
}

#[tokio::test]
async fn source_limit_applies_to_the_address_that_a_step_reports() {
    // While three of the four slots are in use, a source may have one handshake in flight.
    let (acceptor, admission) = guarded(Admission::builder().max_pending(4).max_per_source(1));
    let acceptor = acceptor.prepare(read_addr);
    let begin = |last, bytes| {
        let (mut client, io) = from(last);
        client.write_all(bytes).now_or_never().unwrap().unwrap();
        let mut accept = Box::pin(acceptor.accept(io));
        kind((&mut accept).now_or_never()).map_or(Ok((client, accept)), Err)
    };
    let (mut client, mut moves) = begin(1, b"").unwrap();
    let others = [begin(5, b"").unwrap(), begin(6, b"").unwrap()];
    assert_eq!(begin(1, b"").err(), Some(SourceLimit), "the source of the connection");
    client.write_all(&[2]).await.unwrap();
    assert!((&mut moves).now_or_never().is_none());
    drop(begin(1, b"").unwrap());
    assert_eq!(begin(2, b"").err(), Some(SourceLimit), "the source that it moved to");
    assert_eq!(begin(3, &[2]).err(), Some(SourceLimit), "for one that moves there as well");
    drop((moves, others));
    assert_eq!(admission.pending(), 0);
}

#[tokio::test]
async fn stream_without_metadata_keeps_source_and_shutdown_token() {
    let (acceptor, admission) = guarded(strict());
    // `Watched` does not pass on what its inner stream reports.
    let acceptor =
        acceptor.prepare(|io: Io| async { Ok::<_, io::Error>(Watched { io, alive: Arc::default() }) });
    let (client, io) = from(1);
    let stopping = io.shutdown_token().clone();
    let (client, accepted) = tokio::join!(connector("key").connect(client), acceptor.accept(io));
    let accepted = accepted.unwrap();
    stopping.cancel();
    assert!(accepted.shutdown_token().unwrap().is_cancelled());
    drop(client.unwrap());

    let (client, io) = from(1);
    assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    assert!(is_throttled(&admission, 1), "the source is still that of the connection");
}

#[tokio::test]
async fn admitted_slot_keeps_its_source_if_the_step_does_not_change_the_address() {
    let (acceptor, admission) = guarded(strict());
    let acceptor = acceptor.prepare(read_preface::<Io>);
    let slot = acceptor.admit(Some(addr(7).ip())).unwrap();
    let (client, io) = from_with(1, b"A").await;
    assert_eq!(refuse(client, acceptor.accept_admitted(io, slot)).await, Refused);
    assert!(is_throttled(&admission, 7) && !is_throttled(&admission, 1));
}
