//! Penalties: what a source is charged for, when, how often, and that a server's own faults are free.
#![cfg(feature = "net")]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use HandshakeErrorKind::{
    Evicted, Malformed, Probe, Refused, ShuttingDown, Throttled, TimedOut, UnexpectedEof,
};
use futures::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{advance, sleep, timeout};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service, ServiceBuilder, service_fn};
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};
use tower_challenge::serve::ServeError;
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{
    AcceptError, Acceptor, Authenticated, ChallengeLayer, Connection, HandshakeError, HandshakeErrorKind,
    Identity, Incoming, one_way, serve,
};

use crate::support::{REFUSED, acceptor, answer_by_hand, connector, read_array, read_verdict, ring};

type Io = Connection<DuplexStream>;
type Stream = Authenticated<Io, Identity>;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn addr(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4711).into()
}

/// Creates both ends of a connection from 192.0.2.`last`.
fn from(last: u8) -> (DuplexStream, Io) {
    let (client, server) = duplex(256);
    (client, Connection::new(server, addr(last), &CancellationToken::new()))
}

/// Throttles a source at its first penalty, for as long as that is.
fn strict() -> Penalties {
    Penalties::new().threshold(Duration::ZERO)
}

fn guarded(builder: AdmissionBuilder) -> (Acceptor<one_way::Server>, Admission) {
    let admission = builder.build().unwrap();
    (acceptor(&["key"]).admission(admission.clone()), admission)
}

fn penalized(penalties: Penalties) -> (Acceptor<one_way::Server>, Admission) {
    guarded(Admission::builder().penalties(penalties))
}

fn kind<T>(outcome: Result<T, HandshakeError>) -> Option<HandshakeErrorKind> {
    outcome.err().map(|error| error.kind())
}

fn is_throttled(admission: &Admission, last: u8) -> bool {
    admission.admit(Some(addr(last).ip())).map(tower_challenge::admission::Slot::release).is_err()
}

/// Checks that the only throttled source is throttled for exactly this time from now on.
async fn assert_throttled_for(admission: &Admission, time: Duration) {
    assert_eq!(admission.throttled(), 1);
    advance(time.checked_sub(MILLISECOND).unwrap()).await;
    assert_eq!(admission.throttled(), 1, "for less than {time:?}");
    advance(MILLISECOND).await;
    assert_eq!(admission.throttled(), 0, "for more than {time:?}");
}

/// Reads the challenge, sends a part of an answer, and closes the connection.
async fn hang_up(mut client: DuplexStream) {
    read_array::<32>(&mut client).await;
    client.write_all(b"x").await.unwrap();
}

/// Answers with a wrong key and reads the verdict. The connection stays open.
async fn guess(client: &mut DuplexStream) {
    answer_by_hand(client, "wrong").await;
    assert_eq!(read_verdict(client).await, REFUSED);
}

/// tower's `timeout` around the handshake drops it before a peer that stays has been refused for long.
#[tokio::test(start_paused = true)]
async fn refused_peers_that_stay_are_throttled_under_an_outer_timeout() {
    let admission = Admission::builder().penalties(Penalties::new()).build().unwrap();
    let mut service = ServiceBuilder::new()
        .timeout(Duration::from_millis(500))
        .layer(ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).admission(admission.clone()))
        .service_fn(|_: Stream| async { Ok::<_, Infallible>(()) });
    let (mut answered, mut open, mut rejected) = (0, Vec::new(), 0);
    for _ in 0..100 {
        let (mut client, io) = from(1);
        tokio::spawn(service.call(io));
        // A throttled source is closed without a challenge.
        match client.read_exact(&mut [0; 32]).await {
            Ok(_) => {
                client.write_all(&[7; 16]).await.unwrap();
                assert_eq!(read_verdict(&mut client).await, REFUSED);
                answered += 1;
                open.push(client);
            }
            Err(_) => rejected += 1,
        }
        sleep(50 * MILLISECOND).await;
    }
    // Three penalties of 5 seconds do not exceed the threshold of 15.
    assert_eq!((answered, rejected, admission.throttled()), (4, 96, 1));
}

#[tokio::test(start_paused = true)]
async fn silent_peers_are_throttled_under_an_outer_timeout() {
    let (acceptor, admission) = penalized(Penalties::new());
    let mut service = ServiceBuilder::new()
        .timeout(Duration::from_millis(500))
        .layer(ChallengeLayer::from_acceptor(acceptor))
        .service_fn(|_: Stream| async { Ok::<_, Infallible>(()) });
    let (_clients, ios): (Vec<_>, Vec<_>) = (0..16).map(|_| from(1)).unzip();
    let mut sessions: JoinSet<_> = ios.into_iter().map(|io| service.call(io)).collect();
    assert_eq!(admission.throttled(), 0);
    while let Some(session) = sessions.join_next().await {
        assert!(session.unwrap().unwrap_err().is::<tower::timeout::error::Elapsed>());
    }
    // One second each.
    assert_throttled_for(&admission, 16 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn proof_is_charged_when_it_is_rejected() {
    let (acceptor, admission) = penalized(strict());
    let (mut client, io) = from(1);
    let accept = tokio::spawn(acceptor.accept(io));
    guess(&mut client).await;
    assert!(!accept.is_finished(), "the peer still has the connection");
    assert_eq!((admission.pending(), admission.throttled()), (1, 1));
}

/// Handshakes that begin before the source is throttled are not affected.
#[tokio::test(start_paused = true)]
async fn handshake_in_flight_continues_when_its_source_is_throttled() {
    let (acceptor, _) = penalized(strict());
    let (client, io) = from(1);
    let accept = tokio::spawn(acceptor.accept(io));
    let (mut wrong, io) = from(1);
    let refused = tokio::spawn(acceptor.accept(io));
    guess(&mut wrong).await;
    assert_eq!(kind(acceptor.accept(from(1).1).await), Some(Throttled));
    connector("key").connect(client).await.unwrap();
    accept.await.unwrap().unwrap();
    drop(wrong);
    assert_eq!(kind(refused.await.unwrap()), Some(Refused));
}

#[tokio::test(start_paused = true)]
async fn refused_peer_is_charged_once() {
    enum End {
        Closed,
        Deadline,
        Evicted,
        Aborted,
    }

    for end in [End::Closed, End::Deadline, End::Evicted, End::Aborted] {
        let builder = Admission::builder().max_pending(1).penalties(strict().evicted(60 * SECOND));
        let (acceptor, admission) = guarded(builder);
        let (mut client, io) = from(1);
        let accept = tokio::spawn(acceptor.timeout(3 * SECOND).accept(io));
        guess(&mut client).await;
        let mut left = 5 * SECOND;
        match end {
            End::Closed => {
                drop(client);
                assert_eq!(kind(accept.await.unwrap()), Some(Refused));
            }
            End::Deadline => {
                assert_eq!(kind(accept.await.unwrap()), Some(Refused));
                left -= 3 * SECOND;
            }
            End::Evicted => {
                let other = admission.admit(Some(addr(2).ip())).unwrap();
                assert_eq!(kind(accept.await.unwrap()), Some(Refused));
                other.release();
            }
            End::Aborted => {
                accept.abort();
                accept.await.unwrap_err();
            }
        }
        assert_eq!(admission.pending(), 0);
        assert_throttled_for(&admission, left).await;
    }
}

/// Otherwise whatever drops a handshake early would make it free.
#[tokio::test(start_paused = true)]
async fn abandoned_handshake_is_charged_like_one_that_the_peer_closes() {
    enum End {
        Closed,
        Aborted,
        TimedOut,
        Dropped,
    }

    for in_flight in [Duration::ZERO, 3 * SECOND, 9 * SECOND] {
        for end in [End::Closed, End::Aborted, End::TimedOut, End::Dropped] {
            let (acceptor, admission) = penalized(strict());
            let (mut client, io) = from(1);
            client.write_all(b"x").await.unwrap();
            let accept = acceptor.accept(io);
            match end {
                End::Closed => {
                    let accept = tokio::spawn(accept);
                    yield_now().await;
                    advance(in_flight).await;
                    drop(client);
                    assert_eq!(kind(accept.await.unwrap()), Some(UnexpectedEof));
                }
                End::Aborted => {
                    let accept = tokio::spawn(accept);
                    yield_now().await;
                    advance(in_flight).await;
                    accept.abort();
                    accept.await.unwrap_err();
                }
                End::TimedOut => assert!(timeout(in_flight, accept).await.is_err()),
                End::Dropped => {
                    let mut accept = Box::pin(accept);
                    assert!(accept.as_mut().now_or_never().is_none());
                    advance(in_flight).await;
                    drop(accept);
                }
            }
            assert_eq!(admission.pending(), 0);
            assert_throttled_for(&admission, in_flight.max(SECOND)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn abandoned_handshake_costs_no_more_than_a_timeout() {
    let (acceptor, admission) = penalized(strict());
    let accept = acceptor.timeout(60 * SECOND).accept(from(1).1);
    advance(50 * SECOND).await;
    drop(accept);
    assert_throttled_for(&admission, 10 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn success_is_free() {
    #[derive(Clone)]
    struct NeverReady;

    impl Service<Stream> for NeverReady {
        type Response = ();
        type Error = Infallible;
        type Future = std::future::Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: Stream) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let (acceptor, admission) = penalized(strict());
    let (client, io) = from(1);
    let (accepted, connected) = tokio::join!(acceptor.accept(io), connector("key").connect(client));
    drop((accepted.unwrap(), connected.unwrap()));
    assert_eq!(admission.throttled(), 0);

    // An authenticated peer that waits for the service until it gives up, and one whose session is aborted.
    let layer = ChallengeLayer::from_acceptor(acceptor).ready_timeout(SECOND);
    for aborted in [false, true] {
        let (client, io) = from(1);
        let mut response = Box::pin(layer.layer(NeverReady).call(io));
        tokio::select! {
            connected = connector("key").connect(client) => drop(connected.unwrap()),
            _ = &mut response => unreachable!("the service is not ready"),
        }
        if aborted {
            assert!(response.as_mut().now_or_never().is_none());
            drop(response);
        } else {
            assert!(matches!(response.await, Err(AcceptError::NotReady)));
        }
        assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn released_slot_is_free_and_dropped_slot_is_not() {
    let (_, admission) = penalized(strict());
    let slot = |last| admission.admit(Some(addr(last).ip())).unwrap();
    slot(1).release();
    assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    slot(1).failed(ShuttingDown);
    assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    slot(1).failed(Malformed);
    assert_eq!(admission.pending(), 0);
    assert_throttled_for(&admission, 10 * SECOND).await;
    drop(slot(1));
    assert_eq!(admission.pending(), 0);
    assert_throttled_for(&admission, SECOND).await;
}

/// A source without an address and an exempt one are never charged.
#[tokio::test(start_paused = true)]
async fn unlimited_sources_are_free() {
    let exempt = "192.0.2.0/24".parse().unwrap();
    let (_, admission) = guarded(Admission::builder().penalties(strict()).exempt(exempt));
    for ip in [None, Some(addr(1).ip())] {
        admission.admit(ip).unwrap().failed(Malformed);
        drop(admission.admit(ip).unwrap());
        assert_eq!(admission.throttled(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn evicted_handshake_is_free() {
    enum End {
        Observed,
        Aborted,
        Dropped,
    }

    for end in [End::Observed, End::Aborted, End::Dropped] {
        let (acceptor, admission) = guarded(Admission::builder().max_pending(1).penalties(strict()));
        let (_client, io) = from(1);
        let accept = acceptor.accept(io);
        match end {
            End::Observed => {
                let accept = tokio::spawn(accept);
                yield_now().await;
                admission.admit(None).unwrap().release();
                assert_eq!(kind(accept.await.unwrap()), Some(Evicted));
            }
            // It is dropped before it observes the eviction.
            End::Aborted => {
                let accept = tokio::spawn(accept);
                yield_now().await;
                admission.admit(None).unwrap().release();
                accept.abort();
                accept.await.unwrap_err();
            }
            End::Dropped => {
                admission.admit(None).unwrap().release();
                drop(accept);
            }
        }
        assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    }
}

/// The penalty for an eviction does not depend on how the handshake is dropped.
#[tokio::test(start_paused = true)]
async fn evicted_handshake_costs_its_own_penalty() {
    for observed in [true, false] {
        let builder = Admission::builder().max_pending(1).penalties(strict().evicted(2 * SECOND));
        let (acceptor, admission) = guarded(builder);
        let (_client, io) = from(1);
        let accept = acceptor.accept(io);
        advance(7 * SECOND).await;
        admission.admit(None).unwrap().release();
        if observed {
            assert_eq!(kind(accept.await), Some(Evicted));
        } else {
            drop(accept);
        }
        assert_throttled_for(&admission, 2 * SECOND).await;
    }
}

/// A listener that accepts what the test sends.
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
        Ok(addr(0))
    }
}

/// Starts handshakes of silent peers that have been in flight for a second.
async fn silent_peers(accepts: &mpsc::UnboundedSender<(DuplexStream, SocketAddr)>) -> Vec<DuplexStream> {
    let mut clients = Vec::new();
    for last in 0..10 {
        let (mut client, io) = duplex(64);
        accepts.send((io, addr(last))).unwrap();
        read_array::<32>(&mut client).await;
        clients.push(client);
    }
    sleep(SECOND).await;
    clients
}

async fn assert_closed(mut clients: Vec<DuplexStream>) {
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_is_free() {
    enum End {
        Graceful,
        Forced,
        Dropped,
    }

    for end in [End::Graceful, End::Forced, End::Dropped] {
        let (acceptor, admission) = penalized(strict());
        let service = ServiceBuilder::new()
            .layer(ChallengeLayer::from_acceptor(acceptor))
            .service_fn(|_: Stream| async { Ok::<_, Infallible>(()) });
        let (accepts, listener) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let server =
            serve(Accepts(listener), service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
        let server = match end {
            End::Graceful | End::Dropped => server,
            // Aborts the handshakes before they can observe the signal.
            End::Forced => server.forced_shutdown(async {}),
        };
        let server = tokio::spawn(server.into_future());
        let clients = silent_peers(&accepts).await;
        assert_eq!(admission.pending(), 10);
        match end {
            End::Graceful | End::Forced => {
                stop.send(()).unwrap();
                let shutdown = server.await.unwrap().unwrap();
                assert_eq!(shutdown.failed + shutdown.aborted, 10, "{shutdown:?}");
            }
            End::Dropped => server.abort(),
        }
        assert_closed(clients).await;
        assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_an_incoming_is_free() {
    let (acceptor, admission) = penalized(strict());
    let (accepts, listener) = mpsc::unbounded_channel();
    let layer = ChallengeLayer::from_acceptor(acceptor);
    let incoming = Incoming::builder(Accepts(listener), layer).start().unwrap();
    let clients = silent_peers(&accepts).await;
    let closed = incoming.closed();
    drop(incoming);
    closed.await.unwrap();
    assert_closed(clients).await;
    assert_eq!((admission.pending(), admission.throttled()), (0, 0));
}

/// A shutdown is no pardon for a proof that was rejected before it.
#[tokio::test(start_paused = true)]
async fn refused_peer_stays_charged_at_a_shutdown() {
    let (acceptor, admission) = penalized(strict());
    let (mut client, io) = from(1);
    let shutdown = io.shutdown_token().clone();
    let accept = tokio::spawn(acceptor.accept(io));
    guess(&mut client).await;
    shutdown.cancel();
    assert_eq!(kind(accept.await.unwrap()), Some(Refused));
    assert_throttled_for(&admission, 5 * SECOND).await;
}

/// Until its penalty has passed, even if the penalty falls below the threshold and something is added to it.
#[tokio::test(start_paused = true)]
async fn throttled_source_stays_throttled_when_a_small_penalty_is_added() {
    let (_, admission) = penalized(Penalties::new().timed_out(Duration::ZERO));
    let slot = || admission.admit(Some(addr(1).ip())).unwrap();
    let (early, slots) = (slot(), [slot(), slot(), slot(), slot()]);
    for slot in slots {
        slot.failed(Refused);
    }
    // 20 seconds, of which 8 remain: less than the threshold.
    advance(12 * SECOND).await;
    assert_eq!(admission.throttled(), 1);
    early.failed(UnexpectedEof);
    assert!(is_throttled(&admission, 1));
    assert_throttled_for(&admission, 9 * SECOND).await;
}

/// A step before the handshake may report another address than the socket, e.g. that of the PROXY protocol. The wrapper
/// of the step is the outermost.
#[tokio::test(start_paused = true)]
async fn address_of_the_outermost_wrapper_is_charged() {
    let (acceptor, admission) = penalized(strict());
    let (client, io) = from(1);
    let io = WithInfo::new(io, TransportInfo::new().peer_addr(addr(2)));
    assert_eq!(kind(tokio::join!(acceptor.accept(io), hang_up(client)).0), Some(UnexpectedEof));
    assert!(is_throttled(&admission, 2) && !is_throttled(&admission, 1));

    // The same with a connection around a stream that has an address of its own.
    let (client, server) = duplex(64);
    let server = WithInfo::new(server, TransportInfo::new().peer_addr(addr(3)));
    let io = Connection::new(server, addr(4), &CancellationToken::new());
    assert_eq!(TransportInfo::from_stream(&io).peer_addr, Some(addr(4)));
    drop((client, acceptor.accept(io)));
    assert!(is_throttled(&admission, 4) && !is_throttled(&admission, 3));
}

/// Health checks and port scans, however many.
#[tokio::test(start_paused = true)]
async fn quick_probes_are_free() {
    let (acceptor, admission) = penalized(strict());
    for _ in 0..1_000 {
        let (client, io) = from(1);
        let mut accept = pin!(acceptor.accept(io));
        assert!(accept.as_mut().now_or_never().is_none());
        drop(client);
        assert_eq!(kind(accept.await), Some(Probe));
        assert_eq!(admission.throttled(), 0);
    }
}

/// Otherwise a source could occupy slots for nothing.
#[tokio::test(start_paused = true)]
async fn probe_costs_the_time_that_it_was_open() {
    for (open, penalty) in
        [(100 * MILLISECOND, 100 * MILLISECOND), (9 * SECOND, 9 * SECOND), (60 * SECOND, 10 * SECOND)]
    {
        let (acceptor, admission) = penalized(strict());
        let (client, io) = from(1);
        let accept = tokio::spawn(acceptor.timeout(100 * SECOND).accept(io));
        yield_now().await;
        advance(open).await;
        drop(client);
        assert_eq!(kind(accept.await.unwrap()), Some(Probe));
        assert_throttled_for(&admission, penalty).await;
    }
    // Or a minimum, if that is set.
    let (acceptor, admission) = penalized(strict().probe(3 * SECOND));
    let (client, io) = from(1);
    drop(client);
    assert_eq!(kind(acceptor.accept(io).await), Some(Probe));
    assert_throttled_for(&admission, 3 * SECOND).await;
}

/// One after the other, probes pass more time than they cost.
#[tokio::test(start_paused = true)]
async fn consecutive_slow_probes_do_not_throttle() {
    let (acceptor, admission) = penalized(Penalties::new());
    for _ in 0..100 {
        let (client, io) = from(1);
        let accept = tokio::spawn(acceptor.accept(io));
        yield_now().await;
        advance(SECOND).await;
        drop(client);
        assert_eq!(kind(accept.await.unwrap()), Some(Probe));
        assert_eq!(admission.throttled(), 0);
    }
}

/// A peer that has sent a byte is none, however it ends, and a silent peer that stays is none.
#[tokio::test(start_paused = true)]
async fn only_a_peer_that_closes_before_it_sends_is_a_probe() {
    let (acceptor, _) = penalized(strict());
    let (client, io) = from(1);
    assert_eq!(kind(tokio::join!(acceptor.accept(io), hang_up(client)).0), Some(UnexpectedEof));
    let (_client, io) = from(2);
    assert_eq!(kind(acceptor.accept(io).await), Some(TimedOut));
}

/// A server that closes before it speaks refuses the client, or is not this server.
#[tokio::test(start_paused = true)]
async fn client_never_reports_a_probe() {
    let (client, server) = duplex(64);
    drop(server);
    assert_eq!(kind(connector("key").connect(client).await), Some(UnexpectedEof));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert_eq!(kind(connector("key").connect(client).await), Some(UnexpectedEof));
}

/// Closed and reset connections, with the address and the kind for a filter.
#[tokio::test]
async fn on_error_receives_probes() {
    let (acceptor, admission) = penalized(Penalties::new());
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::from_acceptor(acceptor))
        .service_fn(|_: Authenticated<Connection<TcpStream>, Identity>| async { Ok::<_, Infallible>(()) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server_addr = listener.local_addr().unwrap();
    let (report, mut reports) = mpsc::unbounded_channel();
    let server = serve(listener, service).on_error(move |error: ServeError<SocketAddr>| {
        let addr = error.addr().copied();
        report.send((addr, error.handshake_error().map(HandshakeError::kind))).unwrap();
    });
    let server = tokio::spawn(server.into_future());
    for reset in [false, true].repeat(50) {
        let client = TcpStream::connect(server_addr).await.unwrap();
        let addr = client.local_addr().unwrap();
        if reset {
            client.set_zero_linger().unwrap();
        }
        drop(client);
        assert_eq!(reports.recv().await.unwrap(), (Some(addr), Some(Probe)));
    }
    assert_eq!(admission.throttled(), 0);
    server.abort();
}

/// Otherwise an outage of the key source would lock out legitimate clients.
#[cfg(feature = "mutual")]
#[tokio::test(start_paused = true)]
async fn late_lookup_is_free() {
    use tower_challenge::mutual::{Audience, Client, Server};
    use tower_challenge::{Connector, KeyEntry, KeyStore};

    let looked_up = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&looked_up);
    let store = KeyStore::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<io::Result<Vec<KeyEntry>>>()
    });
    let audience = Audience::new("orders").unwrap();
    let admission = Admission::builder().max_pending(1).penalties(strict()).build().unwrap();
    let acceptor = Acceptor::new(Server::new(store, audience.clone())).admission(admission.clone());
    let key = crate::support::key("0123456789abcdef");
    let connector = Connector::new(Client::new("k", &key, audience).unwrap());
    let handshake = || {
        let (client, io) = from(1);
        (tokio::spawn(acceptor.accept(io)), tokio::spawn(connector.connect(client)))
    };

    // The deadline passes.
    let (accept, _connect) = handshake();
    assert_eq!(kind(accept.await.unwrap()), Some(HandshakeErrorKind::KeySource));
    assert_eq!(admission.throttled(), 0);

    // It is evicted, or aborted, e.g. by a timeout around it.
    for evicted in [true, false] {
        let before = looked_up.load(Ordering::Relaxed);
        let (accept, _connect) = handshake();
        sleep(SECOND).await;
        assert_eq!((looked_up.load(Ordering::Relaxed), admission.pending()), (before + 1, 1));
        if evicted {
            admission.admit(None).unwrap().release();
            assert_eq!(kind(accept.await.unwrap()), Some(Evicted));
        } else {
            accept.abort();
            accept.await.unwrap_err();
        }
        assert_eq!((admission.pending(), admission.throttled()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn throttled_source_costs_no_handshake() {
    let (acceptor, admission) = penalized(strict());
    let mut service = ChallengeLayer::from_acceptor(acceptor)
        .layer(service_fn(|_: Stream| async { Ok::<_, Infallible>(()) }));
    admission.admit(Some(addr(1).ip())).unwrap().failed(Refused);
    for _ in 0..100 {
        let (mut client, io) = from(1);
        let Err(AcceptError::Handshake(error)) = service.call(io).await else { panic!("not throttled") };
        assert_eq!(error.kind(), Throttled);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "without a challenge");
    }
    // A rejected connection adds nothing.
    assert_throttled_for(&admission, 5 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn throttled_sources_are_reported_once_and_taken_from_others() {
    let penalties = Penalties::new().threshold(Duration::ZERO).max(Duration::from_secs(60));
    let admission = |penalties| {
        Admission::builder().exempt("192.0.2.128/25".parse().unwrap()).penalties(penalties).build().unwrap()
    };
    let (first, second) = (admission(penalties.clone()), admission(penalties.max_sources(2)));
    let ip = |last: u8| Some(std::net::IpAddr::from([192, 0, 2, last]));
    assert!(first.take_throttled().is_empty());
    first.admit(ip(1)).unwrap().failed(Refused);
    let reported = first.take_throttled();
    assert_eq!(reported.len(), 1);
    assert!(first.take_throttled().is_empty());

    // An hour is more than the second server's maximum.
    assert!(second.throttle(reported[0].source, Duration::from_secs(3600)));
    assert_eq!(second.admit(ip(1)).unwrap_err().kind(), Throttled);
    assert!(second.take_throttled().is_empty(), "not reported again");
    advance(Duration::from_secs(61)).await;
    second.admit(ip(1)).unwrap().release();

    for refused in ["192.0.2.200/32", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128"] {
        assert!(!second.throttle(refused.parse().unwrap(), Duration::from_secs(1)), "{refused}");
    }
    assert!(!Admission::default().throttle("192.0.2.1/32".parse().unwrap(), Duration::from_secs(1)));

    // As many as the limit, and without displacing this server's own.
    second.admit(ip(9)).unwrap().failed(Refused);
    let source = |last: u8| format!("192.0.2.{last}/32").parse().unwrap();
    let taken = (10..100).filter(|last| second.throttle(source(*last), Duration::from_secs(60)));
    assert_eq!(taken.count(), 2);
    assert_eq!(second.throttled(), 3);
    assert_eq!(second.admit(ip(9)).unwrap_err().kind(), Throttled);
}
