//! Admission control: the cap, the limit of a source, eviction and penalties, and that every slot is released.
#![cfg(feature = "net")]

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use HandshakeErrorKind::{Evicted, Overloaded, SourceLimit, Throttled, TimedOut};
use futures::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service, ServiceBuilder, service_fn};
use tower_challenge::admission::{Admission, AdmissionBuilder, AdmissionError, Penalties};
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{
    AcceptError, Acceptor, Authenticated, ChallengeLayer, Connection, HandshakeError, HandshakeErrorKind,
    Identity, one_way, serve,
};

use crate::support::{
    REFUSED, acceptor, answer_by_hand, connector, hmac_md5, polled_in_turn, read_array, read_verdict, ring,
};

type Io = Connection<DuplexStream>;
type Stream = Authenticated<Io, Identity>;

/// Creates both ends of a connection from 192.0.2.`last`.
fn from(last: u8) -> (DuplexStream, Io) {
    from_ip([192, 0, 2, last])
}

fn from_ip(ip: impl Into<IpAddr>) -> (DuplexStream, Io) {
    let (client, server) = duplex(256);
    (client, Connection::new(server, SocketAddr::new(ip.into(), 4711), &CancellationToken::new()))
}

fn limited(max_pending: usize, max_per_source: usize) -> AdmissionBuilder {
    Admission::builder().max_pending(max_pending).max_per_source(max_per_source)
}

/// Creates an acceptor and returns its admission control with it.
fn guarded(builder: AdmissionBuilder) -> (Acceptor<one_way::Server>, Admission) {
    let admission = builder.build().unwrap();
    (acceptor(&["key"]).admission(admission.clone()), admission)
}

fn kind<T>(outcome: Option<Result<T, HandshakeError>>) -> Option<HandshakeErrorKind> {
    outcome?.err().map(|error| error.kind())
}

/// Waits for the end of the stream. Returns whether nothing was sent before.
async fn is_closed(client: &mut DuplexStream) -> bool {
    client.read(&mut [0]).await.unwrap() == 0
}

#[tokio::test(start_paused = true)]
async fn source_at_its_limit_is_closed_without_a_byte() {
    let (acceptor, admission) = guarded(limited(4, 2));
    let ((_first, first), (_second, second), (_other, other)) = (from(1), from(1), from(3));
    let mut pending =
        [pin!(acceptor.accept(first)), pin!(acceptor.accept(second)), pin!(acceptor.accept(other))];
    assert!(pending.iter_mut().all(|accept| accept.as_mut().now_or_never().is_none()));

    let (mut client, io) = from(1);
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(SourceLimit));
    assert!(is_closed(&mut client).await);
    assert_eq!(admission.pending(), 3);

    // Another source is admitted, and so is the same source when one of its slots is free.
    let (client, io) = from(2);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
    let [first, _second, _other] = pending;
    first.await.unwrap_err();
    let (client, io) = from(1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
}

/// A burst of legitimate clients behind one address.
#[tokio::test(start_paused = true)]
async fn source_limit_does_not_apply_while_a_quarter_of_the_slots_is_free() {
    let (acceptor, admission) = guarded(limited(8, 2));
    let (_clients, ios): (Vec<_>, Vec<_>) = (0..6).map(|_| from(1)).unzip();
    let mut pending: Vec<_> = ios.into_iter().map(|io| Box::pin(acceptor.accept(io))).collect();
    assert!(pending.iter_mut().all(|accept| accept.now_or_never().is_none()));
    assert_eq!(admission.pending(), 6);
    assert_eq!(kind(acceptor.accept(from(1).1).now_or_never()), Some(SourceLimit));
}

#[tokio::test(start_paused = true)]
async fn evicts_oldest_of_heaviest_source_at_capacity() {
    let (acceptor, admission) = guarded(limited(3, 3));
    let arrivals = [from(1), from(1), from(2)];
    let (mut clients, ios): (Vec<_>, Vec<_>) = arrivals.into_iter().unzip();
    let mut pending: Vec<_> = ios.into_iter().map(|io| Box::pin(acceptor.accept(io))).collect();
    advance(Duration::from_secs(1)).await;
    assert!(pending.iter_mut().all(|accept| accept.now_or_never().is_none()));

    let (client, io) = from(3);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
    let outcomes: Vec<_> = pending.iter_mut().map(|accept| kind(accept.now_or_never())).collect();
    assert_eq!(outcomes, [Some(Evicted), None, None]);
    assert_eq!(admission.pending(), 2);
    assert_eq!(clients[0].read_to_end(&mut Vec::new()).await.unwrap(), 32, "challenged, then closed");
}

/// Nothing but the eviction wakes the task.
#[tokio::test]
async fn eviction_wakes_the_task_of_the_handshake() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let (mut client, io) = from(1);
    let pending = tokio::spawn(acceptor.accept(io));
    read_array::<32>(&mut client).await;
    let (_client, io) = from(2);
    let _newcomer = acceptor.accept(io);
    assert_eq!(pending.await.unwrap().unwrap_err().kind(), Evicted);
    assert_eq!(admission.pending(), 1);
}

/// An authenticated peer occupies its slot until the inner service is called, and is not evicted.
#[tokio::test(start_paused = true)]
async fn authenticated_peer_keeps_its_slot_while_the_service_is_not_ready() {
    #[derive(Clone)]
    struct ReadyWhen<F>(F);

    impl<F: Future + Unpin> Service<Stream> for ReadyWhen<F> {
        type Response = ();
        type Error = Infallible;
        type Future = std::future::Pending<Result<(), Infallible>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0.poll_unpin(cx).map(|_| Ok(()))
        }

        fn call(&mut self, _: Stream) -> Self::Future {
            std::future::pending()
        }
    }

    let (ready, is_ready) = oneshot::channel::<()>();
    let is_ready = is_ready.shared();
    let admission = limited(2, 2).build().unwrap();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).admission(admission.clone());
    let mut service = layer.layer(ReadyWhen(is_ready));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let (client, io) = from(1);
        let mut response = Box::pin(service.call(io));
        let connected = connector("key").connect(client);
        tokio::select! {
            connected = connected => drop(connected.unwrap()),
            _ = &mut response => unreachable!("the inner service is not ready"),
        }
        assert!(response.as_mut().now_or_never().is_none());
        waiting.push(response);
    }
    assert_eq!(admission.pending(), 2);

    let (_client, io) = from(2);
    let refused = service.call(io).now_or_never().unwrap();
    assert!(matches!(refused, Err(AcceptError::Handshake(error)) if error.kind() == Overloaded));
    assert_eq!(admission.pending(), 2);

    // The inner service is called, which releases the slots.
    ready.send(()).unwrap();
    for response in &mut waiting {
        assert!(response.as_mut().now_or_never().is_none());
    }
    assert_eq!(admission.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn lingering_peer_counts_towards_the_cap_and_not_the_source_limit() {
    let (acceptor, admission) = guarded(limited(3, 1));
    let (mut client, io) = from(1);
    let refused = tokio::spawn(acceptor.accept(io));
    answer_by_hand(&mut client, "wrong").await;
    assert_eq!(read_verdict(&mut client).await, REFUSED);
    assert_eq!(admission.pending(), 1, "the server waits for the peer's close");
    let _others =
        [admission.admit(Some([192, 0, 2, 2].into())), admission.admit(Some([192, 0, 2, 3].into()))];
    assert_eq!(admission.pending(), 3);
    // The cap is reached, and the lingering peer is the first to be evicted. It is still reported as refused.
    let (_client, io) = from(1);
    let mut accept = pin!(acceptor.accept(io));
    assert!(accept.as_mut().now_or_never().is_none());
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), HandshakeErrorKind::Refused);
    assert_eq!(admission.pending(), 3);
}

#[tokio::test(start_paused = true)]
async fn lingering_peer_releases_its_slot_when_it_closes() {
    let (acceptor, admission) = guarded(limited(10, 1));
    let (mut client, io) = from(1);
    let refused = tokio::spawn(acceptor.accept(io));
    answer_by_hand(&mut client, "wrong").await;
    assert_eq!(read_verdict(&mut client).await, REFUSED);
    assert_eq!(admission.pending(), 1, "the server waits for the peer's close");
    drop(client);
    refused.await.unwrap().unwrap_err();
    assert_eq!(admission.pending(), 0);
}

/// Runs over a pipe of one byte and drops both sides after every possible number of polls.
#[test]
fn dropping_a_handshake_at_any_await_releases_its_slot() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    for client_key in ["key", "wrong"] {
        let (acceptor, admission) = guarded(limited(1, 1));
        let mut service = ChallengeLayer::from_acceptor(acceptor).layer(service_fn(
            async |_: Authenticated<WithInfo<DuplexStream>, Identity>| {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(())
            },
        ));
        let steps = (0..500).find(|&steps| {
            let (client, server) = duplex(1);
            let info = TransportInfo::new().peer_addr(([192, 0, 2, 1], 7).into());
            let mut accept = pin!(service.call(WithInfo::new(server, info)));
            let done = polled_in_turn(connector(client_key).connect(client), accept.as_mut(), steps);
            assert!(admission.pending() <= 1);
            done
        });
        assert!(steps.expect("the handshake completes") > 100, "each run ends at another await");
        assert_eq!(admission.pending(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn penalties_add_up_and_expire() {
    let penalties = Penalties::new().timed_out(Duration::from_secs(20)).threshold(Duration::from_secs(25));
    let (acceptor, admission) =
        guarded(limited(10, 10).penalties(penalties).exempt("198.51.100.0/24".parse().unwrap()));
    for ip in [[198, 51, 100, 1], [192, 0, 2, 1]] {
        assert_eq!(admission.throttled(), 0);
        for _ in 0..2 {
            let (_client, io) = from_ip(ip);
            assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), TimedOut);
        }
    }
    // 20 s, and 10 s later 10 s + 20 s: for the source that is not exempt.
    assert_eq!(admission.throttled(), 1);
    let (mut client, io) = from(1);
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(Throttled));
    assert!(is_closed(&mut client).await);
    advance(Duration::from_secs(29)).await;
    assert_eq!(admission.throttled(), 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(admission.throttled(), 0);
    let (client, io) = from(1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
}

/// An early close, a malformed message and a handshake that the caller abandons add a penalty. A probe and a failure on
/// the server's side do not.
#[tokio::test(start_paused = true)]
async fn failures_that_add_a_penalty() {
    let penalties = || Penalties::new().threshold(Duration::ZERO);
    let (acceptor, admission) = guarded(limited(10, 10).penalties(penalties()));
    let (mut client, io) = from(1);
    let accept = tokio::spawn(acceptor.accept(io));
    read_array::<32>(&mut client).await;
    client.write_all(b"x").await.unwrap();
    drop(client);
    assert_eq!(accept.await.unwrap().unwrap_err().kind(), HandshakeErrorKind::UnexpectedEof);
    assert_eq!(admission.throttled(), 1);

    let (client, io) = from(5);
    drop(client);
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), HandshakeErrorKind::Probe);
    assert_eq!(admission.throttled(), 1);

    let (client, io) = from(2);
    let stopping = io.shutdown_token().clone();
    let accept = acceptor.accept(io);
    stopping.cancel();
    assert_eq!(accept.await.unwrap_err().kind(), HandshakeErrorKind::ShuttingDown);
    drop(client);
    assert_eq!(admission.throttled(), 1);

    // Otherwise a timeout around the handshake would make failures free.
    let (_client, io) = from(3);
    drop(acceptor.accept(io));
    assert_eq!(admission.throttled(), 2);

    // The failure of another handshake that came before.
    let slot = acceptor.admit(Some([192, 0, 2, 4].into())).unwrap();
    slot.failed(HandshakeErrorKind::Malformed);
    assert_eq!((admission.throttled(), admission.pending()), (3, 0));
}

#[tokio::test]
async fn slot_can_be_taken_before_there_is_a_stream() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    let (client, io) = from(1);
    assert_eq!(admission.pending(), 1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept_admitted(io, slot)).unwrap();
    assert_eq!(admission.pending(), 0);

    let mut slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    assert!(slot.evicted().now_or_never().is_none());
    let _newcomer = acceptor.admit(Some([192, 0, 2, 2].into())).unwrap();
    slot.evicted().await;
}

#[tokio::test]
async fn several_acceptors_share_one_admission() {
    let (first, admission) = guarded(limited(1, 1));
    let second = acceptor(&["other"]).admission(admission.clone());
    let (_client, io) = from(1);
    let _pending = first.accept(io);
    assert_eq!(kind(second.accept(from(1).1).now_or_never()), Some(SourceLimit));
    assert!(kind(second.accept(from(2).1).now_or_never()).is_none());
}

#[tokio::test]
async fn bare_tcp_stream_reports_its_source() {
    let (acceptor, _) = guarded(limited(2, 1));
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A dual-stack listener reports IPv4 addresses as IPv6 addresses that share one prefix.
    let mut clients = Vec::new();
    let mut pending = Vec::new();
    for source in ["127.0.0.2", "127.0.0.3"] {
        clients.push(connect_from(source, ([127, 0, 0, 1], port).into()).await);
        let io = listener.accept().await.unwrap().0;
        pending.push(Box::pin(acceptor.accept(io)));
        assert!(kind(pending.last_mut().unwrap().now_or_never()).is_none());
    }
    clients.push(connect_from("127.0.0.2", ([127, 0, 0, 1], port).into()).await);
    let io = listener.accept().await.unwrap().0;
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(SourceLimit));
}

async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// An inner service that echoes a byte, panics if the byte is `p`, and fails in `poll_ready` if configured so.
#[derive(Clone)]
struct Faulty {
    fails_when_ready: bool,
}

impl Service<Authenticated<Connection<TcpStream>, Identity>> for Faulty {
    type Response = ();
    type Error = io::Error;
    type Future = futures::future::BoxFuture<'static, io::Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fails_when_ready {
            return Poll::Ready(Err(io::Error::other("requested failure")));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut stream: Authenticated<Connection<TcpStream>, Identity>) -> Self::Future {
        Box::pin(async move {
            match stream.read_u8().await? {
                b'p' => panic!("requested panic"),
                byte => stream.write_u8(byte).await,
            }
        })
    }
}

async fn start(admission: &Admission, service: Faulty) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).admission(admission.clone());
    let (report, reports) = mpsc::unbounded_channel();
    let server = serve(listener, ServiceBuilder::new().layer(layer).service(service))
        .on_error(move |error| report.send(error.to_string()).unwrap_or_default());
    tokio::spawn(server.into_future());
    (addr, reports)
}

async fn echo(addr: SocketAddr, byte: u8) -> io::Result<u8> {
    let mut stream =
        connector("key").connect(TcpStream::connect(addr).await?).await.map_err(io::Error::other)?;
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

#[tokio::test]
async fn reset_after_any_byte_releases_the_slot() {
    let admission = Admission::default();
    let (addr, mut reports) = start(&admission, Faulty { fails_when_ready: false }).await;
    for len in 0..=17 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        let nonce = read_array::<32>(&mut client).await;
        let mut answer = hmac_md5(b"key", &nonce).to_vec();
        answer.push(b'x');
        client.write_all(&answer[..len]).await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        if len < 16 {
            let report = reports.recv().await.unwrap();
            let before = if len == 0 { "the peer sent anything" } else { "the handshake completed" };
            assert!(report.contains(&format!("connection closed before {before}: ")), "{len}: {report}");
        }
    }
    assert_eq!(echo(addr, b'a').await.unwrap(), b'a');
    assert_eq!(admission.pending(), 0);
}

#[tokio::test]
async fn panic_or_error_of_the_service_releases_the_slot() {
    let admission = Admission::default();
    let (addr, mut reports) = start(&admission, Faulty { fails_when_ready: false }).await;
    assert!(echo(addr, b'p').await.is_err());
    assert!(reports.recv().await.unwrap().ends_with("the service panicked: requested panic"));
    assert_eq!(echo(addr, b'a').await.unwrap(), b'a');
    assert_eq!(admission.pending(), 0);

    let (addr, mut reports) = start(&admission, Faulty { fails_when_ready: true }).await;
    assert!(echo(addr, b'a').await.is_err());
    assert!(reports.recv().await.unwrap().ends_with(": requested failure"));
    assert_eq!(admission.pending(), 0);
}

/// The stream is dropped while `call` unwinds.
#[tokio::test]
async fn panic_in_call_releases_the_slot() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let service = ChallengeLayer::from_acceptor(acceptor).layer(service_fn(|_: Stream| {
        assert!(std::hint::black_box(false), "requested panic");
        std::future::ready(Ok::<_, Infallible>(()))
    }));
    for _ in 0..2 {
        let (client, io) = from(1);
        let mut service = service.clone();
        let session = tokio::spawn(async move { service.call(io).await });
        connector("key").connect(client).await.unwrap();
        assert!(session.await.unwrap_err().is_panic());
        assert_eq!(admission.pending(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_peers_are_all_timed_out_at_the_deadline() {
    let (acceptor, admission) = guarded(limited(1_000, 250));
    let mut pending = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for i in 0..1_000_u16 {
        let (client, io) = from_ip([10, 0, u8::try_from(i % 250).unwrap(), 1]);
        clients.push(client);
        pending.spawn(acceptor.accept(io));
    }
    sleep(Duration::from_millis(9_999)).await;
    assert_eq!(admission.pending(), 1_000);
    sleep(Duration::from_millis(2)).await;
    assert_eq!(admission.pending(), 0);
    assert!(pending.join_all().await.into_iter().all(|outcome| outcome.unwrap_err().kind() == TimedOut));
}

/// If the proof arrived before the eviction was observed, the peer is accepted. It then waits for the service and
/// occupies a slot.
#[tokio::test(start_paused = true)]
async fn proof_that_arrives_before_the_eviction_is_observed_wins() {
    #[derive(Clone)]
    struct Never;

    impl Service<Stream> for Never {
        type Response = ();
        type Error = Infallible;
        type Future = std::future::Pending<Result<(), Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: Stream) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let (acceptor, admission) = guarded(limited(1, 1));
    let mut service = ChallengeLayer::from_acceptor(acceptor).layer(Never);
    let (mut client, io) = from(1);
    let mut waiting = Box::pin(service.call(io));
    assert!(waiting.as_mut().now_or_never().is_none());
    answer_by_hand(&mut client, "key").await;
    // Evicts the handshake before it is polled again.
    let newcomer = admission.admit(Some([192, 0, 2, 2].into())).unwrap();
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(admission.pending(), 2);
    drop(newcomer);
    assert_eq!(admission.admit(Some([192, 0, 2, 3].into())).unwrap_err().kind(), Overloaded);
    drop(waiting);
    assert_eq!(admission.pending(), 0);
}

#[tokio::test]
async fn accept_with_a_revoked_slot_fails() {
    let (acceptor, _) = guarded(limited(1, 1));
    let mut slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    let _other = acceptor.admit(Some([192, 0, 2, 2].into())).unwrap();
    slot.evicted().await;
    slot.evicted().await;
    let (_client, io) = from(1);
    assert_eq!(acceptor.accept_admitted(io, slot).await.unwrap_err().kind(), Evicted);
}

/// A handshake that comes before, such as that of TLS, gets a deadline and the same penalties.
#[tokio::test(start_paused = true)]
async fn slot_guards_an_earlier_handshake() {
    let penalties = Penalties::new().threshold(Duration::ZERO).evicted(Duration::from_secs(1));
    let (acceptor, admission) = guarded(limited(1, 1).penalties(penalties));
    let admit = |last| acceptor.admit(Some([192, 0, 2, last].into())).unwrap();
    let second = Duration::from_secs(1);

    let done = async { Ok::<_, io::Error>(7) };
    let (seven, slot) = admit(1).guard(second, done).await.unwrap();
    assert_eq!((seven, admission.pending(), admission.throttled()), (7, 1, 0));
    slot.release();

    let failed = async { Err::<(), _>(io::Error::from(io::ErrorKind::InvalidData)) };
    let error = admit(2).guard(second, failed).await.unwrap_err();
    assert_eq!(error.kind(), HandshakeErrorKind::Malformed);
    let endless = || std::future::pending::<io::Result<()>>();
    assert_eq!(admit(3).guard(second, endless()).await.unwrap_err().kind(), TimedOut);
    assert_eq!((admission.pending(), admission.throttled()), (0, 2));

    let guarded = admit(4).guard(second, endless());
    let newcomer = admit(5);
    assert_eq!(guarded.await.unwrap_err().kind(), Evicted);
    newcomer.release();
    assert_eq!((admission.pending(), admission.throttled()), (0, 3));
}

/// Otherwise a source could occupy slots without a break for a tenth of the penalty of a timeout.
#[tokio::test(start_paused = true)]
async fn closing_just_before_the_deadline_is_penalized_like_a_timeout() {
    for (sent, expected) in [(&b""[..], HandshakeErrorKind::Probe), (b"x", HandshakeErrorKind::UnexpectedEof)]
    {
        let (acceptor, admission) = guarded(limited(100, 100).penalties(Penalties::new()));
        let (mut clients, ios): (Vec<_>, Vec<_>) = (0..2).map(|_| from(1)).unzip();
        let pending: Vec<_> = ios.into_iter().map(|io| tokio::spawn(acceptor.accept(io))).collect();
        for client in &mut clients {
            client.write_all(sent).await.unwrap();
        }
        sleep(Duration::from_millis(9_900)).await;
        drop(clients);
        for accept in pending {
            assert_eq!(accept.await.unwrap().unwrap_err().kind(), expected);
        }
        assert_eq!(admission.throttled(), 1);
    }
}

/// Otherwise an outage of the key store would still lock out legitimate clients after it is over.
#[cfg(feature = "mutual")]
#[tokio::test(start_paused = true)]
async fn timeout_of_the_key_source_adds_no_penalty() {
    use tower_challenge::mutual::{Audience, Client, Server};
    use tower_challenge::{Connector, KeyEntry, KeyStore};

    let store = KeyStore::new(|_| std::future::pending::<io::Result<Vec<KeyEntry>>>());
    let (_, admission) = guarded(Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO)));
    let audience = Audience::unspecified();
    let acceptor = Acceptor::new(Server::new(store, audience.clone())).admission(admission.clone());
    let client = Client::new("k", &crate::support::key("0123456789abcdef"), audience).unwrap();
    let (io, server) = from(1);
    let (accepted, _) = tokio::join!(acceptor.accept(server), Connector::new(client).connect(io));
    assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::KeySource);
    assert_eq!(admission.throttled(), 0);
}

/// A peer that uses up the deadline itself does not escape the penalty with a proof at its very end.
#[cfg(feature = "mutual")]
#[tokio::test(start_paused = true)]
async fn proof_just_before_the_deadline_does_not_escape_the_penalty() {
    use tower_challenge::mutual::{Audience, Client, Server};
    use tower_challenge::{Connector, KeyEntry, KeyStore};

    let store = KeyStore::new(|_| std::future::pending::<io::Result<Vec<KeyEntry>>>());
    let (_, admission) = guarded(Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO)));
    let audience = Audience::unspecified();
    let acceptor = Acceptor::new(Server::new(store, audience.clone())).admission(admission.clone());
    let client = Client::new("k", &crate::support::key("0123456789abcdef"), audience).unwrap();
    let (io, server) = from(1);
    let late = async {
        sleep(Duration::from_millis(9_900)).await;
        Connector::new(client).connect(io).await
    };
    let (accepted, _) = tokio::join!(acceptor.accept(server), late);
    assert_eq!(accepted.unwrap_err().kind(), TimedOut);
    assert_eq!(admission.throttled(), 1);
}

#[test]
fn invalid_settings_are_errors_of_build() {
    let builder = Admission::builder;
    for (builder, error) in [
        (builder().max_pending(0), AdmissionError::ZeroLimit("max_pending")),
        (builder().max_per_source(0), AdmissionError::ZeroLimit("max_per_source")),
        (
            builder().penalties(Penalties::new().max_sources(0)),
            AdmissionError::ZeroLimit("Penalties::max_sources"),
        ),
        (builder().prefix_lengths(33, 64), AdmissionError::PrefixLengths { v4: 33, v6: 64 }),
        (builder().prefix_lengths(32, 129), AdmissionError::PrefixLengths { v4: 32, v6: 129 }),
    ] {
        assert_eq!(builder.build().unwrap_err(), error);
        // `main` prints the `Debug` form.
        assert_eq!(format!("{error:?}"), error.to_string());
    }
    builder().max_pending(1).max_per_source(1).prefix_lengths(0, 0).build().unwrap();
    builder().prefix_lengths(32, 128).build().unwrap();
}
