//! Who may try: the cap, the share of a source, shedding and penalties, and that a slot always comes back.
#![cfg(feature = "net")]

mod support;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use HandshakeErrorKind::{OverShare, Overloaded, Penalized, Shed, TimedOut};
use futures::FutureExt as _;
use support::{acceptor, answer_by_hand, connector, polled_in_turn, read_array, read_verdict, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service, ServiceBuilder, service_fn};
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};
use tower_challenge::transport::TransportInfo;
use tower_challenge::{
    AcceptError, Acceptor, Authenticated, ChallengeLayer, Connection, HandshakeError, HandshakeErrorKind,
    Identity, one_way, serve,
};

type Io = Connection<DuplexStream>;
type Stream = Authenticated<Io, Identity>;

/// The two ends of a connection from 192.0.2.`last`.
fn from(last: u8) -> (DuplexStream, Io) {
    from_ip([192, 0, 2, last])
}

fn from_ip(ip: impl Into<IpAddr>) -> (DuplexStream, Io) {
    let (client, server) = duplex(256);
    (client, Connection::new(server, SocketAddr::new(ip.into(), 4711), CancellationToken::new()))
}

fn limited(max_pending: usize, max_per_source: usize) -> AdmissionBuilder {
    Admission::builder().max_pending(max_pending).max_per_source(max_per_source)
}

/// An acceptor, and what it admits.
fn guarded(builder: AdmissionBuilder) -> (Acceptor<one_way::Server>, Admission) {
    let admission = builder.build();
    (acceptor(&["key"]).admission(admission.clone()), admission)
}

fn kind<T>(outcome: Option<Result<T, HandshakeError>>) -> Option<HandshakeErrorKind> {
    outcome?.err().map(|error| error.kind())
}

/// Closed without a byte.
async fn is_closed(client: &mut DuplexStream) -> bool {
    client.read(&mut [0]).await.unwrap() == 0
}

#[tokio::test(start_paused = true)]
async fn beyond_its_share_a_source_is_refused_without_a_byte() {
    let (acceptor, admission) = guarded(limited(10, 2));
    let ((_first, first), (_second, second)) = (from(1), from(1));
    let mut pending = [pin!(acceptor.accept(first)), pin!(acceptor.accept(second))];
    assert!(pending.iter_mut().all(|accept| accept.as_mut().now_or_never().is_none()));

    let (mut client, io) = from(1);
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(OverShare));
    assert!(is_closed(&mut client).await);
    assert_eq!(admission.pending(), 2);

    // Another source, and the same one once a place is free.
    let (client, io) = from(2);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
    let [first, _second] = pending;
    first.await.unwrap_err();
    let (client, io) = from(1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_the_cap_is_full_the_newcomer_is_let_in_and_the_largest_source_gives_way() {
    let (acceptor, admission) = guarded(limited(3, 3));
    let arrivals = [from(1), from(1), from(2)];
    let (mut clients, ios): (Vec<_>, Vec<_>) = arrivals.into_iter().unzip();
    let mut pending: Vec<_> = ios.into_iter().map(|io| Box::pin(acceptor.accept(io))).collect();
    advance(Duration::from_secs(1)).await;
    assert!(pending.iter_mut().all(|accept| accept.now_or_never().is_none()));

    let (client, io) = from(3);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
    let outcomes: Vec<_> = pending.iter_mut().map(|accept| kind(accept.now_or_never())).collect();
    assert_eq!(outcomes, [Some(Shed), None, None]);
    assert_eq!(admission.pending(), 2);
    assert_eq!(clients[0].read_to_end(&mut Vec::new()).await.unwrap(), 32, "challenged, then closed");
}

/// A task that is shed is woken for it, and by nothing else.
#[tokio::test]
async fn a_shed_handshake_ends_at_once() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let (mut client, io) = from(1);
    let pending = tokio::spawn(acceptor.accept(io));
    read_array::<32>(&mut client).await;
    let (_client, io) = from(2);
    let _newcomer = acceptor.accept(io);
    assert_eq!(pending.await.unwrap().unwrap_err().kind(), Shed);
    assert_eq!(admission.pending(), 1);
}

/// What has proven itself counts until the inner service is called, and is not shed.
#[tokio::test(start_paused = true)]
async fn who_waits_for_the_service_is_pending_and_stays() {
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
    let admission = limited(2, 2).build();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).admission(admission.clone());
    let mut service = layer.layer(ReadyWhen(is_ready));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let (client, io) = from(1);
        let mut response = Box::pin(service.call(io));
        let connected = connector("key").connect(client);
        tokio::select! {
            connected = connected => drop(connected.unwrap()),
            _ = &mut response => unreachable!("it waits"),
        }
        assert!(response.as_mut().now_or_never().is_none());
        waiting.push(response);
    }
    assert_eq!(admission.pending(), 2);

    let (_client, io) = from(2);
    let refused = service.call(io).now_or_never().unwrap();
    assert!(matches!(refused, Err(AcceptError::Handshake(error)) if error.kind() == Overloaded));
    assert_eq!(admission.pending(), 2);

    // Called, and nobody's business any more.
    ready.send(()).unwrap();
    for response in &mut waiting {
        assert!(response.as_mut().now_or_never().is_none());
    }
    assert_eq!(admission.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_peer_counts_until_it_is_gone() {
    let (acceptor, admission) = guarded(limited(10, 1));
    let (mut client, io) = from(1);
    let refused = tokio::spawn(acceptor.accept(io));
    answer_by_hand(&mut client, "wrong").await;
    assert_eq!(read_verdict(&mut client).await, support::REFUSED);
    assert_eq!(admission.pending(), 1, "it lingers");
    assert_eq!(kind(acceptor.accept(from(1).1).now_or_never()), Some(OverShare));
    drop(client);
    refused.await.unwrap().unwrap_err();
    assert_eq!(admission.pending(), 0);
}

/// Over a pipe of one byte, polled in turn and dropped after any number of polls.
#[test]
fn a_slot_comes_back_wherever_a_handshake_is_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    for client_key in ["key", "wrong"] {
        let (acceptor, admission) = guarded(limited(1, 1));
        let mut service = ChallengeLayer::from_acceptor(acceptor)
            .inspect(|_: &DuplexStream| TransportInfo::new().peer_addr(([192, 0, 2, 1], 7).into()))
            .layer(service_fn(async |_: Authenticated<DuplexStream, Identity>| {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(())
            }));
        let steps = (0..500).find(|&steps| {
            let (client, server) = duplex(1);
            let mut accept = pin!(service.call(server));
            let done = polled_in_turn(connector(client_key).connect(client), accept.as_mut(), steps);
            assert!(admission.pending() <= 1);
            done
        });
        assert!(steps.expect("it ends") > 100, "each at another await");
        assert_eq!(admission.pending(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn penalties_add_up_and_are_served() {
    let penalties = Penalties::new().timed_out(Duration::from_secs(20)).threshold(Duration::from_secs(25));
    let (acceptor, admission) =
        guarded(limited(10, 10).penalties(penalties).exempt("198.51.100.0/24".parse().unwrap()));
    for ip in [[198, 51, 100, 1], [192, 0, 2, 1]] {
        assert_eq!(admission.penalized(), 0);
        for _ in 0..2 {
            let (_client, io) = from_ip(ip);
            assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), TimedOut);
        }
    }
    // 20 s, and 10 s later 10 + 20: for the one that is not exempt.
    assert_eq!(admission.penalized(), 1);
    let (mut client, io) = from(1);
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(Penalized));
    assert!(is_closed(&mut client).await);
    advance(Duration::from_secs(29)).await;
    assert_eq!(admission.penalized(), 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(admission.penalized(), 0);
    let (client, io) = from(1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept(io)).unwrap();
}

/// Whoever closes or talks nonsense is penalized as well; whom the server could not serve is not.
#[tokio::test(start_paused = true)]
async fn what_is_penalized() {
    let penalties = || Penalties::new().threshold(Duration::ZERO);
    let (acceptor, admission) = guarded(limited(10, 10).penalties(penalties()));
    let (client, io) = from(1);
    drop(client);
    acceptor.accept(io).await.unwrap_err();
    assert_eq!(admission.penalized(), 1);

    let (client, io) = from(2);
    let stopping = io.shutdown_token().clone();
    let accept = acceptor.accept(io);
    stopping.cancel();
    assert_eq!(accept.await.unwrap_err().kind(), HandshakeErrorKind::ShuttingDown);
    drop(client);
    assert_eq!(admission.penalized(), 1);

    // Dropped by whoever runs it: nobody knows why.
    let (_client, io) = from(3);
    drop(acceptor.accept(io));
    assert_eq!(admission.penalized(), 1);

    // In a handshake of another kind, before this one.
    let slot = acceptor.admit(Some([192, 0, 2, 4].into())).unwrap();
    slot.failed(HandshakeErrorKind::Malformed);
    assert_eq!((admission.penalized(), admission.pending()), (2, 0));
}

#[tokio::test]
async fn a_slot_can_be_had_before_there_is_a_stream() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    let (client, io) = from(1);
    assert_eq!(admission.pending(), 1);
    tokio::try_join!(connector("key").connect(client), acceptor.accept_admitted(io, slot)).unwrap();
    assert_eq!(admission.pending(), 0);

    let mut slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    assert!(slot.revoked().now_or_never().is_none());
    let _newcomer = acceptor.admit(Some([192, 0, 2, 2].into())).unwrap();
    slot.revoked().await;
}

#[tokio::test]
async fn one_admission_can_guard_several_acceptors() {
    let (first, admission) = guarded(limited(10, 1));
    let second = acceptor(&["other"]).admission(admission.clone());
    let (_client, io) = from(1);
    let _pending = first.accept(io);
    assert_eq!(kind(second.accept(from(1).1).now_or_never()), Some(OverShare));
    assert!(kind(second.accept(from(2).1).now_or_never()).is_none());
}

#[tokio::test]
async fn a_bare_socket_knows_its_source() {
    let (acceptor, _) = guarded(limited(10, 1));
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Through a dual-stack listener, where IPv4 looks like IPv6 of one and the same prefix.
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
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(OverShare));
}

async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// A server over real sockets whose handler does as it is told, and fails or panics.
#[derive(Clone)]
struct Moody {
    fails_when_ready: bool,
}

impl Service<Authenticated<Connection<TcpStream>, Identity>> for Moody {
    type Response = ();
    type Error = io::Error;
    type Future = futures::future::BoxFuture<'static, io::Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fails_when_ready {
            return Poll::Ready(Err(io::Error::other("as it was told")));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut stream: Authenticated<Connection<TcpStream>, Identity>) -> Self::Future {
        Box::pin(async move {
            match stream.read_u8().await? {
                b'p' => panic!("as it was told"),
                byte => stream.write_u8(byte).await,
            }
        })
    }
}

async fn start(admission: &Admission, service: Moody) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).admission(admission.clone());
    let (told, tell) = mpsc::unbounded_channel();
    let server = serve(listener, ServiceBuilder::new().layer(layer).service(service))
        .on_error(move |error| told.send(error.to_string()).unwrap_or_default());
    tokio::spawn(server.into_future());
    (addr, tell)
}

async fn greet(addr: SocketAddr, byte: u8) -> io::Result<u8> {
    let mut stream =
        connector("key").connect(TcpStream::connect(addr).await?).await.map_err(io::Error::other)?;
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

#[tokio::test]
async fn a_reset_after_any_byte_leaves_nothing() {
    let admission = Admission::default();
    let (addr, mut tell) = start(&admission, Moody { fails_when_ready: false }).await;
    for len in 0..=17 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        let nonce = read_array::<32>(&mut client).await;
        let mut answer = support::hmac_md5(b"key", &nonce).to_vec();
        answer.push(b'x');
        client.write_all(&answer[..len]).await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        if len < 16 {
            let said = tell.recv().await.unwrap();
            assert!(said.ends_with("peer closed before the handshake was over"), "{len}: {said}");
        }
    }
    assert_eq!(greet(addr, b'a').await.unwrap(), b'a');
    assert_eq!(admission.pending(), 0);
}

#[tokio::test]
async fn a_service_that_panics_or_fails_leaves_nothing() {
    let admission = Admission::default();
    let (addr, mut tell) = start(&admission, Moody { fails_when_ready: false }).await;
    assert!(greet(addr, b'p').await.is_err());
    assert!(tell.recv().await.unwrap().contains("panicked"));
    assert_eq!(greet(addr, b'a').await.unwrap(), b'a');
    assert_eq!(admission.pending(), 0);

    let (addr, mut tell) = start(&admission, Moody { fails_when_ready: true }).await;
    assert!(greet(addr, b'a').await.is_err());
    assert!(tell.recv().await.unwrap().ends_with("the service of an authenticated peer failed"));
    assert_eq!(admission.pending(), 0);
}

/// A service whose very `call` panics, in which the stream goes down with it.
#[tokio::test]
async fn a_call_that_panics_leaves_nothing() {
    let (acceptor, admission) = guarded(limited(1, 1));
    let service = ChallengeLayer::from_acceptor(acceptor).layer(service_fn(|_: Stream| {
        assert!(std::hint::black_box(false), "as it was told");
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
async fn in_a_flood_every_silent_peer_is_gone_at_the_deadline() {
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

/// Its proof was there before it was told to go, and it has been told that it is in: it waits, and counts.
#[tokio::test(start_paused = true)]
async fn who_was_shed_too_late_counts_again() {
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
    // Before it is polled again.
    let newcomer = admission.admit(Some([192, 0, 2, 2].into())).unwrap();
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(admission.pending(), 2);
    drop(newcomer);
    assert_eq!(admission.admit(Some([192, 0, 2, 3].into())).unwrap_err().kind(), Overloaded);
    drop(waiting);
    assert_eq!(admission.pending(), 0);
}

#[tokio::test]
async fn a_place_that_was_revoked_is_of_no_use_any_more() {
    let (acceptor, _) = guarded(limited(1, 1));
    let mut slot = acceptor.admit(Some([192, 0, 2, 1].into())).unwrap();
    let _other = acceptor.admit(Some([192, 0, 2, 2].into())).unwrap();
    slot.revoked().await;
    slot.revoked().await;
    let (_client, io) = from(1);
    assert_eq!(acceptor.accept_admitted(io, slot).await.unwrap_err().kind(), Shed);
}

/// TLS, say: in time, and with the penalties that the handshake would have.
#[tokio::test(start_paused = true)]
async fn another_handshake_before_this_one_is_guarded() {
    let penalties = Penalties::new().threshold(Duration::ZERO).shed(Duration::from_secs(1));
    let (acceptor, admission) = guarded(limited(1, 1).penalties(penalties));
    let admit = |last| acceptor.admit(Some([192, 0, 2, last].into())).unwrap();
    let second = Duration::from_secs(1);

    let done = async { Ok::<_, io::Error>(7) };
    let (seven, slot) = admit(1).guard(second, done).await.unwrap();
    assert_eq!((seven, admission.pending(), admission.penalized()), (7, 1, 0));
    drop(slot);

    let failed = async { Err::<(), _>(io::Error::from(io::ErrorKind::InvalidData)) };
    let error = admit(2).guard(second, failed).await.unwrap_err();
    assert_eq!(error.kind(), HandshakeErrorKind::Malformed);
    let endless = || std::future::pending::<io::Result<()>>();
    assert_eq!(admit(3).guard(second, endless()).await.unwrap_err().kind(), TimedOut);
    assert_eq!((admission.pending(), admission.penalized()), (0, 2));

    let guarded = admit(4).guard(second, endless());
    let newcomer = admit(5);
    assert_eq!(guarded.await.unwrap_err().kind(), Shed);
    drop(newcomer);
    assert_eq!((admission.pending(), admission.penalized()), (0, 3));
}

/// To hold a place without a break for a tenth of what it costs to be timed out.
#[tokio::test(start_paused = true)]
async fn who_goes_just_before_the_deadline_is_kept_out_as_well() {
    let (acceptor, admission) = guarded(limited(100, 100).penalties(Penalties::new()));
    let (clients, ios): (Vec<_>, Vec<_>) = (0..2).map(|_| from(1)).unzip();
    let pending: Vec<_> = ios.into_iter().map(|io| tokio::spawn(acceptor.accept(io))).collect();
    sleep(Duration::from_millis(9_900)).await;
    drop(clients);
    for accept in pending {
        assert_eq!(accept.await.unwrap().unwrap_err().kind(), HandshakeErrorKind::ClosedEarly);
    }
    assert_eq!(admission.penalized(), 1);
}

/// A store that is down must not keep friends out when it is up again.
#[cfg(feature = "mutual")]
#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_looked_up_in_time_is_not_the_peer_s_fault() {
    use tower_challenge::mutual::{Audience, Client, Server};
    use tower_challenge::{Connector, KeyEntry, KeyStore};

    let store = KeyStore::new(|_| std::future::pending::<io::Result<Vec<KeyEntry>>>());
    let admission = Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO)).build();
    let audience = Audience::unspecified();
    let acceptor = Acceptor::new(Server::new(store, audience.clone())).admission(admission.clone());
    let client = Client::new("k", &support::key("0123456789abcdef"), audience).unwrap();
    let (io, server) = from(1);
    let (accepted, _) = tokio::join!(acceptor.accept(server), Connector::new(client).connect(io));
    assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::KeySource);
    assert_eq!(admission.penalized(), 0);
}
