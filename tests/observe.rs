//! What is logged and counted of a server's handshakes and connections.
#![cfg(all(feature = "net", feature = "mutual", feature = "tracing", feature = "metrics"))]

#[path = "support/process.rs"]
mod process;
mod support;
#[path = "support/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use metrics_util::debugging::DebuggingRecorder;
use support::{acceptor, answer_by_hand, connector, key, read_verdict, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::advance;
use tokio_util::net::Listener;
use tower::{Layer as _, Service, ServiceBuilder};
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::mechanism::{self, Mechanism};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::serve::Shutdown;
use tower_challenge::transport::TransportInfo;
use tower_challenge::{
    Acceptor, Authenticated, ChallengeLayer, Connection, Connector, HandshakeError, HandshakeErrorKind,
    Identity, Incoming, KeyEntry, KeyRing, KeyStore, observe, one_way, serve,
};
use tracing::Level;
use watch::{Log, Meter};

type Stream<IO = TcpStream, A = SocketAddr> = Authenticated<Connection<IO, A>, Identity>;

const KEY: &str = "sixteen bytes or more";

fn mutual_server(id: &str) -> mutual::Server<KeyRing<mutual::PreparedKey>> {
    let ring = KeyRing::new([KeyEntry::new(id, key(KEY)).unwrap()]).unwrap();
    mutual::Server::new(ring, Audience::new("orders").unwrap())
}

fn mutual_client(id: &str, text: &str) -> Connector<mutual::Client> {
    Connector::new(mutual::Client::new(id, &key(text), Audience::new("orders").unwrap()).unwrap())
}

fn map<const N: usize>(entries: [(&str, i64); N]) -> BTreeMap<String, i64> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn sum(numbers: &BTreeMap<String, i64>) -> i64 {
    numbers.values().sum()
}

/// A server whose sessions say how they go.
async fn sessions_of_alice() -> (SocketAddr, oneshot::Sender<()>, JoinHandle<Shutdown>) {
    let service = ServiceBuilder::new().layer(ChallengeLayer::new(mutual_server("alice"))).service_fn(
        |mut stream: Authenticated<Connection<TcpStream>, mutual::Peer>| async move {
            tracing::warn!("session begins");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            tracing::warn!(len = all.len(), "session over");
            io::Result::Ok(())
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, service).with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(async move { server.await.unwrap() });
    (addr, stop, server)
}

/// Says something where it is made, called, polled and dropped.
struct Talks;

impl<R: Send + 'static> Service<R> for Talks {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tracing::info!("ready");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        struct Says(&'static str);
        impl Drop for Says {
            fn drop(&mut self) {
                tracing::info!("{}", self.0);
            }
        }
        tracing::info!("called");
        Box::pin(async move {
            let (_request, _says) = (request, Says("dropped"));
            tracing::info!("polled");
            tokio::task::yield_now().await;
            tracing::info!("polled again");
            std::future::pending().await
        })
    }
}

impl Clone for Talks {
    fn clone(&self) -> Self {
        Self
    }
}

#[tokio::test]
async fn a_span_for_each_connection_with_what_is_known_of_it() {
    let (log, _watching) = Log::begin();
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);

    let (addr, stop, server) = sessions_of_alice().await;
    let connect = || async { TcpStream::connect(addr).await.unwrap() };

    // Before all others, and it holds up none of them.
    let silent = connect().await;
    let mut ports = vec![silent.local_addr().unwrap().port()];
    let mut session = mutual_client("alice", KEY).connect(connect().await).await.unwrap();
    session.write_all(b"hello").await.unwrap();
    ports.push(session.get_ref().local_addr().unwrap().port());
    drop(session);
    for (id, text) in [("alice", "another sixteen bytes"), ("mallory", KEY)] {
        let stream = connect().await;
        ports.push(stream.local_addr().unwrap().port());
        let refused = mutual_client(id, text).connect(stream).await.unwrap_err();
        assert_eq!(refused.kind(), HandshakeErrorKind::Refused);
    }
    // A client of HTTP sees a challenge and no response.
    let mut stranger = connect().await;
    ports.push(stranger.local_addr().unwrap().port());
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    stranger.read_to_end(&mut seen).await.unwrap();
    assert_eq!((seen.len(), &seen[..3]), (2 + 1 + 32, &[0, 33, 1][..]));
    drop(stranger);

    stop.send(()).unwrap();
    server.await.unwrap();

    let spans = log.spans();
    assert!(spans.iter().all(|span| span.over && span.name == "connection" && span.level == Level::INFO));
    assert!(spans.iter().all(|span| span.target == "tower_challenge" && span.parent.is_none()));
    let mut outcomes = Vec::new();
    for (span, port) in spans.iter().zip(&ports) {
        let field = |name| span.fields.get(name).map(String::as_str);
        assert_eq!(field("network.peer.address"), Some("127.0.0.1"));
        assert_eq!(field("network.peer.port"), Some(&*port.to_string()));
        assert_eq!(field("network.type"), Some("ipv4"));
        assert_eq!(field("challenge.mechanism"), Some("mutual"));
        let took: f64 = field("challenge.handshake.duration").unwrap().parse().unwrap();
        assert!((0.0..10.0).contains(&took));
        outcomes.push((field("challenge.outcome").unwrap(), field("error.type"), field("user.id")));
    }
    assert_eq!(
        outcomes,
        [
            ("shutting_down", Some("shutting_down"), None),
            ("success", None, Some("alice")),
            ("refused", Some("refused"), None),
            ("refused", Some("refused"), None),
            ("malformed", Some("malformed"), None),
        ]
    );

    // What the session says is in its span, and in no other.
    let said: Vec<_> = log.lines().into_iter().filter(|line| line.message.starts_with("session")).collect();
    assert_eq!(said.len(), 2);
    assert!(said.iter().all(|line| line.span == Some(spans[1].id)), "{said:?}");
    let succeeded = log.lines_with("handshake succeeded");
    assert_eq!(
        (succeeded.len(), succeeded[0].level, succeeded[0].span),
        (1, Level::DEBUG, Some(spans[1].id))
    );
    let failed = log.lines_with("handshake failed");
    assert_eq!(failed.len(), 4);
    assert!(failed.iter().all(|line| line.level == Level::INFO && line.span.is_some()));
    let malformed =
        &failed.iter().find(|line| line.fields["error.type"] == "malformed").unwrap().fields["error"];
    assert!(malformed.starts_with("malformed handshake message"), "{malformed}");

    // What was only claimed is nowhere, nor is anything that looks like a key or a tag.
    let everything = format!("{spans:?} {:?}", log.lines());
    assert!(!everything.contains("mallory"));
    assert!(!everything.contains(KEY));

    assert_eq!(
        meter.numbers(observe::HANDSHAKES),
        map([
            ("mechanism=mutual, outcome=malformed", 1),
            ("mechanism=mutual, outcome=refused", 2),
            ("mechanism=mutual, outcome=shutting_down", 1),
            ("mechanism=mutual, outcome=success", 1),
        ])
    );
    assert_eq!(meter.durations("mechanism=mutual, outcome=refused").len(), 2);
    assert_eq!(meter.numbers(observe::CONNECTIONS_ACCEPTED), map([("", 5)]));
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
    let names = meter.series().concat();
    assert!(
        !names.contains("127.0.0.1") && !names.contains("alice"),
        "no label that a peer chooses: {names}"
    );
}

/// Also what it says when it is dropped midway.
#[tokio::test]
async fn the_inner_service_is_within_the_span_from_readiness_to_its_end() {
    let (log, _watching) = Log::begin();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let (client, server) = duplex(64);
    let outer = tracing::info_span!("outer");
    let mut response = Box::pin(outer.in_scope(|| layer.layer(Talks).call(server)));
    let answered = async {
        tokio::select! {
            client = connector("key").connect(client) => drop(client.unwrap()),
            _ = &mut response => unreachable!("it never ends"),
        }
        while log.lines_with("polled again").is_empty() {
            assert!(futures::poll!(&mut response).is_pending());
        }
    };
    answered.await;
    tracing::info!("outside");
    drop(response);

    let spans = log.spans();
    let [outer, connection] = &*spans else { panic!("{spans:?}") };
    assert_eq!(connection.parent, Some(outer.id), "below the span that is current at the call");
    assert!(connection.over);
    for message in ["ready", "called", "polled", "polled again", "dropped"] {
        let lines = log.lines_with(message);
        assert!(!lines.is_empty(), "{message}");
        assert!(lines.iter().all(|line| line.span == Some(connection.id)), "{lines:?}");
    }
    assert_eq!(log.lines_with("outside")[0].span, None);
}

async fn meet<S, C>(server: Acceptor<S>, client: Connector<C>)
where
    S: Mechanism<Role = mechanism::Server>,
    C: Mechanism<Role = mechanism::Client>,
{
    let (client_io, server_io) = duplex(64);
    let (accepted, connected) = tokio::join!(server.accept(server_io), client.connect(client_io));
    assert!(accepted.is_ok() && connected.is_ok());
}

#[tokio::test]
async fn every_mechanism_says_its_name_and_whose_key_it_is() {
    let (log, _watching) = Log::begin();
    meet(acceptor(&["key"]), connector("key")).await;
    meet(Acceptor::new(mutual_server("a\nb")), mutual_client("a\nb", KEY)).await;
    let mut expected = vec![("one_way", "key"), ("mutual", "a\\nb")];
    #[cfg(feature = "multiprocessing")]
    {
        use tower_challenge::multiprocessing::{Client, Server};

        let keys = KeyRing::new(support::entries(&["workers"])).unwrap();
        meet(Acceptor::new(Server::new(keys)), Connector::new(Client::new(&key("workers")))).await;
        expected.push(("multiprocessing", "workers"));
    }
    let spans = log.spans();
    let found: Vec<_> =
        spans.iter().map(|span| (&*span.fields["challenge.mechanism"], &*span.fields["user.id"])).collect();
    assert_eq!(found, expected);
    assert!(!spans[0].fields.contains_key("network.peer.address"), "nobody knows it");
}

#[tokio::test]
async fn who_is_not_admitted_is_counted_and_has_no_span() {
    let (log, _watching) = Log::begin();
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let admission = Admission::builder()
        .max_pending(2)
        .max_per_source(1)
        .penalties(Penalties::new().refused(Duration::from_secs(60)))
        .build();
    // As a listener for both families says it: IPv4 in IPv6.
    let from = |last: u8| {
        let ip = std::net::Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped();
        move |_: &DuplexStream| TransportInfo::new().peer_addr((ip, 7).into())
    };
    let accept = |last| {
        let (client, server) = duplex(64);
        (client, acceptor(&["key"]).admission(admission.clone()).inspect(from(last)).accept(server))
    };
    let outcome = |outcome: Result<_, HandshakeError>| outcome.map(drop).unwrap_err().kind();

    let (_first_client, first) = accept(1);
    let mut first = pin!(first);
    assert!(futures::poll!(first.as_mut()).is_pending());
    assert_eq!(outcome(accept(1).1.await), HandshakeErrorKind::OverShare);
    let (mut wrong, refused) = accept(2);
    let refused = tokio::spawn(refused);
    answer_by_hand(&mut wrong, "wrong").await;
    assert_eq!(read_verdict(&mut wrong).await, support::REFUSED);
    drop(wrong);
    assert_eq!(outcome(refused.await.unwrap()), HandshakeErrorKind::Refused);
    assert_eq!(outcome(accept(2).1.await), HandshakeErrorKind::Penalized);
    // Also by whoever asks before there is a stream, and where the future is not even polled.
    assert_eq!(
        admission.admit(Some([192, 0, 2, 1].into())).unwrap_err().kind(),
        HandshakeErrorKind::OverShare
    );
    drop(accept(2));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));

    // Of the largest source the oldest is shed, and by then it is a handshake that has ended.
    let slots = [3, 4].map(|last| admission.admit(Some([192, 0, 2, last].into())).unwrap());
    assert_eq!(outcome(first.await), HandshakeErrorKind::Shed);
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(2));
    assert_eq!(admission.pending(), 2);
    drop(slots);

    assert_eq!(
        meter.numbers(observe::NOT_ADMITTED),
        map([("reason=over_share", 2), ("reason=penalized", 2)])
    );
    let ended = [("mechanism=one_way, outcome=refused", 1), ("mechanism=one_way, outcome=shed", 1)];
    assert_eq!(meter.numbers(observe::HANDSHAKES), map(ended));
    let names: Vec<_> =
        meter.series().into_iter().filter(|name| name.starts_with(observe::HANDSHAKE_DURATION)).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));

    let spans = log.spans();
    assert_eq!(spans.len(), 2, "for those who were admitted");
    assert_eq!(
        (&*spans[0].fields["network.peer.address"], &*spans[0].fields["network.type"]),
        ("192.0.2.1", "ipv4")
    );
    let lines = log.lines_with("not admitted");
    assert!(
        lines
            .iter()
            .all(|line| line.span.is_none() && line.fields["network.peer.address"].starts_with("192.0.2."))
    );
}

/// Ready at the second look, and then busy for two polls.
#[derive(Clone, Default)]
struct Slow {
    asked: bool,
}

impl<R: Send + 'static> Service<R> for Slow {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if std::mem::replace(&mut self.asked, true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, stream: R) -> Self::Future {
        Box::pin(async move {
            let _stream = stream;
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            Ok(())
        })
    }
}

/// One byte at a time, so that there are many points.
#[test]
fn wherever_it_is_dropped_it_is_counted_once_and_nothing_stays() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (log, _watching) = Log::begin();
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let admission = Admission::default();
    let layer = ChallengeLayer::new(mutual_server("alice")).admission(admission.clone());

    let mut counted = BTreeMap::new();
    for polls in 0.. {
        let (client, server) = duplex(1);
        let mut client = pin!(mutual_client("alice", KEY).connect(client));
        let mut connected = None;
        let mut response = Box::pin(layer.layer(Slow::default()).call(server));
        assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));
        let cx = &mut Context::from_waker(Waker::noop());
        let mut over = false;
        for _ in 0..polls {
            over = response.as_mut().poll(cx).is_ready();
            if over {
                break;
            }
            if connected.is_none()
                && let Poll::Ready(outcome) = client.as_mut().poll(cx)
            {
                connected = Some(outcome.unwrap());
            }
        }
        drop(response);
        assert_eq!(admission.pending(), 0);
        assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0), "after {polls} polls");
        let before = std::mem::replace(&mut counted, meter.numbers(observe::HANDSHAKES));
        assert_eq!(sum(&counted), sum(&before) + 1, "after {polls} polls");
        if over {
            break;
        }
    }
    let counted =
        ["abandoned", "success"].map(|outcome| counted[&format!("mechanism=mutual, outcome={outcome}")]);
    assert!(counted[0] > 50 && counted[1] > 3, "{counted:?}");
    let spans = log.spans();
    assert!(spans.iter().all(|span| span.over));
    let of = |outcome: &str| {
        let of_it = spans.iter().filter(|span| span.fields["challenge.outcome"] == outcome);
        i64::try_from(of_it.count()).unwrap()
    };
    assert_eq!([of("abandoned"), of("success")], counted);
}

/// What the kernel says, from a test.
struct Accepts(mpsc::Receiver<io::Result<DuplexStream>>);

impl Listener for Accepts {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(accepted.map(|io| (io, ()))),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_panic_are_aborted_or_never_come_leave_the_gauges_at_zero() {
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let (accept, accepts) = mpsc::channel(8);
    let begun = Arc::new(Notify::new());
    let service =
        ServiceBuilder::new().layer(ChallengeLayer::new(one_way::Server::new(ring(&["key"])))).service_fn({
            let begun = Arc::clone(&begun);
            move |mut stream: Stream<DuplexStream, ()>| {
                let begun = Arc::clone(&begun);
                async move {
                    let order = stream.read_u8().await?;
                    assert_ne!(order, b'p', "as it was told");
                    begun.notify_one();
                    // For ever.
                    std::future::pending::<io::Result<()>>().await
                }
            }
        });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(Accepts(accepts), service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(1));
    let server = tokio::spawn(async move { server.await.unwrap() });

    for kind in [io::ErrorKind::ConnectionAborted, io::ErrorKind::Other, io::ErrorKind::ConnectionAborted] {
        accept.send(Err(kind.into())).await.unwrap();
    }
    let (_silent, io) = duplex(64);
    accept.send(Ok(io)).await.unwrap();
    let mut sessions = Vec::new();
    for order in [b'p', b's'] {
        let (client, io) = duplex(64);
        accept.send(Ok(io)).await.unwrap();
        let mut session = connector("key").connect(client).await.unwrap();
        session.write_u8(order).await.unwrap();
        sessions.push(session);
    }
    assert_eq!(sessions[0].read(&mut [0]).await.unwrap(), 0, "closed by the panic");
    begun.notified().await;
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(2), "the silent one and the session");
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));
    stop.send(()).unwrap();
    let shutdown = server.await.unwrap();
    assert_eq!((shutdown.panicked, shutdown.aborted), (0, 1), "{shutdown:?}");

    assert_eq!(
        meter.numbers(observe::ACCEPT_ERRORS),
        map([("kind=connection_aborted", 2), ("kind=other", 1)])
    );
    assert_eq!(meter.numbers(observe::PANICS), map([("", 1)]));
    assert_eq!(meter.numbers(observe::CONNECTIONS_ACCEPTED), map([("", 3)]));
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
}

#[tokio::test]
async fn a_handshake_that_panics_or_is_aborted_is_abandoned() {
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let keys = KeyStore::new(|_| async { panics() });
    let layer = ChallengeLayer::new(mutual::Server::new(keys, Audience::new("orders").unwrap()));
    let (accept, accepts) = mpsc::channel(2);
    let service = ServiceBuilder::new().layer(layer).service(Slow::default());
    let server = tokio::spawn(serve(Accepts(accepts), service).into_future());
    let (_silent, io) = duplex(64);
    accept.send(Ok(io)).await.unwrap();
    let (client, io) = duplex(64);
    accept.send(Ok(io)).await.unwrap();
    let refused = mutual_client("alice", KEY).connect(client).await.unwrap_err();
    assert_eq!(refused.kind(), HandshakeErrorKind::ClosedEarly);
    assert_eq!(meter.number(observe::PANICS), Some(1));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));
    assert_eq!(meter.numbers(observe::HANDSHAKES), map([("mechanism=mutual, outcome=abandoned", 1)]));

    // With all that it holds.
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    tokio::task::yield_now().await;
    assert_eq!(meter.numbers(observe::HANDSHAKES), map([("mechanism=mutual, outcome=abandoned", 2)]));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
}

fn panics() -> io::Result<Vec<KeyEntry>> {
    panic!("as it was told")
}

/// It is open as long as whoever pulled it has it.
#[tokio::test]
async fn a_connection_that_is_pulled_is_open_until_it_is_dropped() {
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut incoming = Incoming::builder(listener, layer).start().unwrap();
    let client = TcpStream::connect(*incoming.local_addr()).await.unwrap();
    let (accepted, connected) = tokio::join!(incoming.accept(), connector("key").connect(client));
    let (accepted, _connected) = (accepted.unwrap(), connected.unwrap());
    let ended = incoming.ended();
    drop(incoming);
    tokio::task::yield_now().await;
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(1));
    drop(accepted);
    ended.await.unwrap();
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
}

/// A gauge that was raised where nobody counted must not be lowered where somebody does.
#[tokio::test]
async fn a_recorder_that_comes_late_or_goes_early_does_no_harm() {
    let recorder = DebuggingRecorder::new();
    let mut meter = Meter::new(&recorder);
    let before = Admission::default().admit(None).unwrap();
    let during = metrics::with_local_recorder(&recorder, || {
        let during = Admission::default().admit(None).unwrap();
        drop(before);
        during
    });
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));
    drop(during);
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
}

#[tokio::test(start_paused = true)]
async fn durations_are_in_seconds_and_until_the_end_whichever_it_is() {
    let (log, _watching) = Log::begin();
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let (_silent, server) = duplex(64);
    acceptor(&["key"]).timeout(Duration::from_secs(3)).accept(server).await.unwrap_err();
    let (_silent, server) = duplex(64);
    let accept = acceptor(&["key"]).accept(server);
    advance(Duration::from_millis(1500)).await;
    drop(accept);
    let mut of = |outcome: &str| meter.durations(&format!("mechanism=one_way, outcome={outcome}"));
    assert_eq!((of("timed_out"), of("abandoned")), (vec![3.0], vec![1.5]));
    let spans = log.spans();
    let durations: Vec<_> = spans.iter().map(|span| &*span.fields["challenge.handshake.duration"]).collect();
    assert_eq!(durations, ["3.0", "1.5"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_described_has_its_unit() {
    let recorder = DebuggingRecorder::new();
    let _counting = metrics::set_default_local_recorder(&recorder);
    observe::describe();
    let (_silent, server) = duplex(64);
    acceptor(&["key"]).timeout(Duration::from_secs(3)).accept(server).await.unwrap_err();

    let seen = recorder.snapshotter().snapshot().into_vec();
    let described = |name: &str| {
        let (_, unit, description, _) = seen.iter().find(|(key, ..)| key.key().name() == name).unwrap();
        assert!(description.is_some(), "{name}");
        *unit
    };
    assert_eq!(described(observe::HANDSHAKE_DURATION), Some(metrics::Unit::Seconds));
    // Where an exporter makes a suffix of the unit, a count has none.
    assert_eq!(described(observe::HANDSHAKES), None);
    assert_eq!(described(observe::HANDSHAKES_PENDING), None);
}

/// 1,000 strangers in every way that there is, within an interval.
#[tokio::test(start_paused = true)]
async fn a_flood_of_failures_is_a_few_lines_whose_numbers_add_up() {
    let (log, _watching) = Log::begin();
    let admission = Admission::builder().max_pending(2_000).max_per_source(1).build();
    let acceptor = acceptor(&["key"]).timeout(Duration::from_secs(1)).admission(admission.clone());
    let outcome = |outcome: Result<_, HandshakeError>| outcome.map(drop).unwrap_err().kind();

    for _ in 0..500 {
        let (client, server) = duplex(64);
        drop(client);
        assert_eq!(outcome(acceptor.accept(server).await), HandshakeErrorKind::ClosedEarly);
    }
    for _ in 0..200 {
        let (mut client, server) = duplex(64);
        let wrong = async {
            answer_by_hand(&mut client, "wrong").await;
            read_verdict(&mut client).await;
            drop(client);
        };
        assert_eq!(outcome(tokio::join!(acceptor.accept(server), wrong).0), HandshakeErrorKind::Refused);
    }
    let silent: Vec<_> = (0..100).map(|_| duplex(64)).collect();
    let (clients, servers): (Vec<_>, Vec<_>) = silent.into_iter().unzip();
    for outcome in futures::future::join_all(servers.into_iter().map(|server| acceptor.accept(server))).await
    {
        assert_eq!(outcome.unwrap_err().kind(), HandshakeErrorKind::TimedOut);
    }
    for client in clients {
        drop(acceptor.accept(client));
    }
    let mut slot = None;
    // The first of them is let in.
    for _ in 0..=100 {
        match admission.admit(Some([192, 0, 2, 1].into())) {
            Ok(admitted) => slot = Some(admitted),
            Err(error) => assert_eq!(error.kind(), HandshakeErrorKind::OverShare),
        }
    }
    drop(slot);

    let of_their_own = || log.lines().iter().filter(|line| line.fields.contains_key("error.type")).count();
    assert_eq!((of_their_own(), log.lines().len()), (5, 5));
    let succeed = || async {
        let (client, server) = duplex(64);
        let (accepted, connected) = tokio::join!(acceptor.accept(server), connector("key").connect(client));
        assert!(accepted.is_ok() && connected.is_ok());
    };
    succeed().await;
    assert!(log.lines_with("handshakes failed").is_empty(), "not before the interval is over");
    advance(Duration::from_secs(9)).await;
    succeed().await;

    let summaries = log.lines_with("handshakes failed");
    let [summary] = &*summaries else { panic!("{summaries:?}") };
    assert_eq!((summary.level, summary.span), (Level::INFO, None));
    assert_eq!(summary.number("challenge.failures.total"), Some(1_000));
    assert_eq!(summary.number("challenge.failures.suppressed"), Some(995));
    let by_kind = [
        ("closed_early", 500),
        ("refused", 200),
        ("timed_out", 100),
        ("abandoned", 100),
        ("over_share", 100),
    ];
    let by_kind: BTreeMap<_, _> =
        by_kind.map(|(kind, count)| (format!("challenge.failures.{kind}"), count)).into();
    let found: BTreeMap<_, u64> = summary
        .fields
        .iter()
        .filter(|(name, _)| !name.ends_with("total") && !name.ends_with("suppressed"))
        .map(|(&name, count)| (name.to_owned(), count.parse().unwrap()))
        .collect();
    assert_eq!(found, by_kind);
    assert_eq!(log.lines().iter().filter(|line| line.level < Level::DEBUG).count(), 6);

    // A new interval, over with the next failure; and what is left of that one's is said when the last that counts
    // goes.
    for _ in 0..2 {
        advance(Duration::from_secs(10)).await;
        for _ in 0..7 {
            let (client, server) = duplex(64);
            drop(client);
            outcome(acceptor.accept(server).await);
        }
    }
    let (_client, server) = duplex(64);
    let last = acceptor.accept(server);
    drop((acceptor, admission));
    assert_eq!(log.lines_with("handshakes failed").len(), 2);
    drop(last);
    let summaries = log.lines_with("handshakes failed");
    let of = |name: &str| {
        let name = format!("challenge.failures.{name}");
        summaries.iter().map(|line| line.number(&name)).collect::<Vec<_>>()
    };
    assert_eq!(of("total"), [Some(1_000), Some(7), Some(8)]);
    assert_eq!(of("suppressed"), [Some(995), Some(2), Some(3)]);
    assert_eq!(of("closed_early"), [Some(500), Some(7), Some(7)]);
    assert_eq!(of("abandoned"), [Some(100), None, Some(1)]);
}

/// `WARN`, and so is the summary in which it would be lost.
#[tokio::test(start_paused = true)]
async fn what_this_side_can_t_help_is_a_warning() {
    let (log, _watching) = Log::begin();
    let keys = KeyStore::new(|_| async { Err::<Vec<KeyEntry>, _>(io::Error::other("the database is down")) });
    let server = Acceptor::new(mutual::Server::new(keys, Audience::new("orders").unwrap()));
    for _ in 0..6 {
        let (client, io) = duplex(64);
        let (accepted, _) = tokio::join!(server.accept(io), mutual_client("alice", KEY).connect(client));
        assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::KeySource);
    }
    drop(server);
    let lines = log.lines();
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().all(|line| line.level == Level::WARN));
    assert!(lines[0].fields["error"].contains("no key for the handshake"));
    assert_eq!(lines[5].number("challenge.failures.key_source"), Some(6));
}

/// What the example serves to Prometheus.
fn scrape(addr: &str) -> String {
    use std::io::{Read as _, Write as _};

    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    body.to_owned()
}

/// The same once all of these lines are in it: what a client sees comes before what the server counts.
fn scrape_until(addr: &str, lines: &[&str]) -> String {
    let begin = std::time::Instant::now();
    loop {
        let text = scrape(addr);
        let missing = lines.iter().find(|line| !text.lines().any(|found| found == **line));
        match missing {
            None => return text,
            Some(line) => assert!(begin.elapsed() < Duration::from_secs(60), "no {line:?} in {text}"),
        }
    }
}

#[test]
fn the_example_shows_what_happens() {
    use std::io::Read as _;

    use process::{Running, example, run, stderr, stdout};

    let listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log", "debug"];
    let mut server = Running::start(example("observe").args(listen).env("CHALLENGE_KEY", "sesame"));
    let addr = server.line().strip_prefix("listening on ").expect("it says where").to_owned();
    let metrics = server.line_with("metrics on ");
    let metrics = metrics.split_once("http://").unwrap().1.strip_suffix("/metrics").unwrap();
    let talk = |key: &str, input: &str| {
        run(example("client").args(["--connect", &addr]).env("CHALLENGE_KEY", key), input)
    };

    let silent = std::net::TcpStream::connect(&addr).unwrap();
    assert_eq!(stdout(&talk("sesame", "hello\n")), "hello\n");
    server.line_with("handshake succeeded");
    let line = server.line_with("session over");
    for part in [
        "connection{network.peer.address=127.0.0.1",
        "challenge.mechanism=\"one_way\"",
        "user.id=default",
        "echoed=6",
    ] {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
    assert_eq!(stderr(&talk("wrong", "hello\n")), "error: handshake refused\n");
    assert!(server.line_with("handshake failed").contains("error.type=\"refused\""));
    let mut short = std::net::TcpStream::connect(&addr).unwrap();
    short.read_exact(&mut [0; 32]).unwrap();
    drop(short);
    assert!(server.line_with("handshake failed").contains("error.type=\"closed_early\""));

    let text = scrape_until(
        metrics,
        &[
            "challenge_handshakes_total{mechanism=\"one_way\",outcome=\"success\"} 1",
            "challenge_handshakes_total{mechanism=\"one_way\",outcome=\"refused\"} 1",
            "challenge_handshakes_total{mechanism=\"one_way\",outcome=\"closed_early\"} 1",
            "challenge_handshake_duration_seconds_count{mechanism=\"one_way\",outcome=\"success\"} 1",
            "challenge_handshakes_pending 1",
            "challenge_connections_open 1",
            "challenge_connections_accepted_total 4",
            "observe_sources_penalized 0",
            "# TYPE challenge_handshakes_pending gauge",
        ],
    );
    assert!(!text.contains("127.0.0.1") && !text.contains("default"), "{text}");
    let summary = server.line_with("pending 1");
    assert!(summary.contains("sessions 0, accepted ") && summary.contains("/s, handshake p50 "), "{summary}");

    drop(silent);
    scrape_until(metrics, &["challenge_handshakes_pending 0", "challenge_connections_open 0"]);
    server.interrupt();
    server.line_with("stopped");
    assert!(server.wait().success());
}
