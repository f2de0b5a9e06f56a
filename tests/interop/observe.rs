//! Spans, events and metrics of handshakes and connections.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use metrics_util::debugging::DebuggingRecorder;
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
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{
    Acceptor, Authenticated, BoxError, ChallengeLayer, Connection, Connector, HandshakeError,
    HandshakeErrorKind, Identity, Incoming, KeyEntry, KeyRing, KeyStore, multiprocessing, observe, one_way,
    serve,
};
use tracing::Level;

use crate::support::{self, acceptor, answer_by_hand, connector, key, read_array, read_verdict, ring};
use crate::watch::{Log, LogEvent, Meter};

type Stream<IO = TcpStream, A = SocketAddr> = Authenticated<Connection<IO, A>, Identity>;

const KEY: &str = "sixteen bytes or more";

fn mutual_server(id: &str) -> mutual::Server<mutual::KeyRing> {
    let ring = mutual::KeyRing::new([KeyEntry::new(id, key(KEY)).unwrap()]).unwrap();
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

/// Starts a server whose sessions log events of their own.
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
    let server = serve(listener, service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(async move { server.await.unwrap() });
    (addr, stop, server)
}

/// A service that logs when it is asked for readiness, called, polled and dropped.
struct Logs;

impl<R: Send + 'static> Service<R> for Logs {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tracing::info!("ready");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        struct LogOnDrop(&'static str);
        impl Drop for LogOnDrop {
            fn drop(&mut self) {
                tracing::info!("{}", self.0);
            }
        }
        tracing::info!("called");
        Box::pin(async move {
            let (_request, _guard) = (request, LogOnDrop("dropped"));
            tracing::info!("polled");
            tokio::task::yield_now().await;
            tracing::info!("polled again");
            std::future::pending().await
        })
    }
}

impl Clone for Logs {
    fn clone(&self) -> Self {
        Self
    }
}

#[tokio::test]
async fn span_of_each_connection_has_peer_and_outcome() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);

    let (addr, stop, server) = sessions_of_alice().await;
    let connect = || async { TcpStream::connect(addr).await.unwrap() };

    // Connected before all others, and it delays none of them.
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
    // An HTTP client receives a challenge and no response.
    let mut http = connect().await;
    ports.push(http.local_addr().unwrap().port());
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut received = Vec::new();
    http.read_to_end(&mut received).await.unwrap();
    assert_eq!((received.len(), &received[..3]), (2 + 1 + 32, &[0, 33, 1][..]));
    drop(http);

    stop.send(()).unwrap();
    server.await.unwrap();

    let spans = log.server_spans();
    assert!(spans.iter().all(|span| span.closed && span.name == "connection" && span.level == Level::INFO));
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

    // Events of the session are in its span, and in no other.
    let in_session: Vec<_> =
        log.server_events().into_iter().filter(|event| event.message.starts_with("session")).collect();
    assert_eq!(in_session.len(), 2);
    assert!(in_session.iter().all(|event| event.span == Some(spans[1].id)), "{in_session:?}");
    let succeeded = log.server_events_with("handshake succeeded");
    assert_eq!(
        (succeeded.len(), succeeded[0].level, succeeded[0].span),
        (1, Level::DEBUG, Some(spans[1].id))
    );
    let failed = log.server_events_with("handshake failed");
    assert_eq!(failed.len(), 4);
    assert!(failed.iter().all(|event| event.level == Level::INFO && event.span.is_some()));
    let malformed =
        &failed.iter().find(|event| event.fields["error.type"] == "malformed").unwrap().fields["error"];
    assert_eq!(malformed, "malformed handshake message: the peer speaks HTTP, this side `mutual`");

    // A key id that was only claimed is in the event of its refusal, and nowhere else. Keys are nowhere.
    let spans = log.spans();
    assert!(!format!("{spans:?}").contains("mallory"));
    let events = log.events();
    let claims: Vec<_> = events.iter().filter(|event| format!("{event:?}").contains("mallory")).collect();
    let [claim] = &*claims else { panic!("{claims:?}") };
    assert_eq!((&*claim.message, &*claim.fields["error.type"]), ("handshake failed", "refused"));
    assert!(!format!("{spans:?} {events:?}").contains(KEY));

    assert_eq!(
        meter.handshakes("server"),
        map([
            ("mechanism=mutual, outcome=malformed", 1),
            ("mechanism=mutual, outcome=refused", 2),
            ("mechanism=mutual, outcome=shutting_down", 1),
            ("mechanism=mutual, outcome=success", 1),
        ])
    );
    assert_eq!(meter.durations("role=server, mechanism=mutual, outcome=refused").len(), 2);
    assert_eq!(meter.numbers(observe::CONNECTIONS_ACCEPTED), map([("", 5)]));
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
    let names = meter.series().concat();
    assert!(
        !names.contains("127.0.0.1") && !names.contains("alice") && !names.contains("mallory"),
        "no label is chosen by a peer: {names}"
    );
}

/// Returns the events of refused handshakes.
fn refusals(log: &Log) -> Vec<LogEvent> {
    let mut failed = log.server_events_with("handshake failed");
    failed.retain(|event| event.fields["error.type"] == "refused");
    failed
}

#[tokio::test]
async fn refusal_event_has_reason_and_claimed_key_id() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let hex_key = "00112233445566778899aabbccddeeff";
    let escaped_and_elided = format!("a\x1b[2J\"\n:{hex_key}");
    let cases = [
        ("mallory", KEY, "mallory", "unknown key id"),
        (
            "alice",
            "another sixteen bytes",
            "alice",
            "the proof does not match: wrong key, audience or channel binding",
        ),
        (&escaped_and_elided, KEY, "a\\u{1b}[2J\\\"\\n:[32 hex digits]", "unknown key id"),
        (hex_key, KEY, "[32 hex digits]", "unknown key id"),
    ];
    let acceptor = Acceptor::new(mutual_server("alice"));
    for (id, text, shown, reason) in cases {
        let (client, server) = duplex(64);
        let client = async { mutual_client(id, text).connect(client).await.map(drop) };
        let (accepted, connected) = tokio::join!(acceptor.accept(server), client);
        let accepted = accepted.unwrap_err();
        assert_eq!(connected.unwrap_err().to_string(), "handshake refused", "the client learns no reason");
        assert_eq!(accepted.refusal_reason().unwrap().to_string(), reason);

        let event = refusals(&log).pop().unwrap();
        assert_eq!(event.level, Level::INFO);
        assert_eq!(event.fields["challenge.claimed_key_id"], shown);
        assert_eq!(
            event.fields["error"],
            format!("handshake refused: {reason} (claimed key id \"{shown}\")")
        );
        assert_eq!(event.fields["error"], accepted.to_string());
    }
    assert_eq!(refusals(&log).len(), cases.len());

    let logged = format!("{:?} {:?}", log.spans(), log.events());
    assert!(!logged.contains(hex_key) && !logged.contains('\x1b'), "{logged}");
    assert!(log.spans().iter().all(|span| !span.fields.contains_key("user.id")), "nothing was proven");
    let series = meter.series().concat();
    assert!(!cases.iter().any(|(id, _, shown, _)| series.contains(id) || series.contains(shown)), "{series}");
    assert_eq!(meter.handshakes("server"), map([("mechanism=mutual, outcome=refused", 4)]));
}

/// Health checks and port scans cause neither a summary nor an event above `DEBUG`.
#[tokio::test(start_paused = true)]
async fn probes_are_debug_events_without_summary() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let acceptor = acceptor(&["key"]);
    for _ in 0..100 {
        let (client, server) = duplex(64);
        drop(client);
        assert_eq!(acceptor.accept(server).await.unwrap_err().kind(), HandshakeErrorKind::Probe);
        advance(Duration::from_secs(1)).await;
    }
    drop(acceptor);
    let events = log.events();
    assert_eq!(events.len(), 100);
    assert!(events.iter().all(|event| event.message == "connection probed" && event.level == Level::DEBUG));
    assert_eq!(meter.handshakes("server"), map([("mechanism=one_way, outcome=probe", 100)]));
}

#[tokio::test]
async fn client_handshakes_are_observed_by_role() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let acceptor = Acceptor::new(mutual_server("alice"));
    for text in [KEY, "another sixteen bytes"] {
        let (client, server) = duplex(64);
        let client = async { mutual_client("alice", text).connect(client).await.map(drop) };
        let (accepted, connected) = tokio::join!(acceptor.accept(server), client);
        assert_eq!((accepted.is_ok(), connected.is_ok()), (text == KEY, text == KEY));
    }

    let mut spans = log.spans();
    assert!(spans.iter().all(|span| span.closed && span.name == "connection"));
    spans.retain(|span| span.fields["challenge.role"] == "client");
    let outcomes: Vec<_> = spans.iter().map(|span| &*span.fields["challenge.outcome"]).collect();
    assert_eq!(outcomes, ["success", "refused"]);
    assert!(spans.iter().all(|span| span.fields["challenge.mechanism"] == "mutual"));

    let mut failed = log.events_with("handshake failed");
    failed.retain(|event| event.role.as_deref() == Some("client"));
    let [failed] = &*failed else { panic!("{failed:?}") };
    assert_eq!(failed.fields["error"], "handshake refused", "the client learns no reason");
    assert!(!failed.fields.contains_key("challenge.claimed_key_id"));

    let expected = map([("mechanism=mutual, outcome=refused", 1), ("mechanism=mutual, outcome=success", 1)]);
    for role in ["client", "server"] {
        assert_eq!(meter.handshakes(role), expected, "{role}");
        assert_eq!(meter.durations(&format!("role={role}, mechanism=mutual, outcome=success")).len(), 1);
    }
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0), "only those of the server");
}

/// Without a key id on the wire there is none in the event.
#[tokio::test]
async fn refusal_event_of_one_way_has_reason_only() {
    let (log, _capture) = Log::start();
    let (mut wrong, server) = duplex(64);
    let accept = tokio::spawn(acceptor(&["key"]).accept(server));
    answer_by_hand(&mut wrong, "wrong").await;
    assert_eq!(read_verdict(&mut wrong).await, support::REFUSED);
    drop(wrong);
    accept.await.unwrap().unwrap_err();
    let refusals = refusals(&log);
    let [refusal] = &*refusals else { panic!("{refusals:?}") };
    assert_eq!(refusal.fields["error"], "handshake refused: the answer matches none of the keys");
    assert!(!refusal.fields.contains_key("challenge.claimed_key_id"));
}

/// Includes what it logs when it is dropped before its end.
#[tokio::test]
async fn inner_service_runs_inside_the_span() {
    let (log, _capture) = Log::start();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let (client, server) = duplex(64);
    let outer = tracing::info_span!("outer");
    let mut response = Box::pin(outer.in_scope(|| layer.layer(Logs).call(server)));
    let answered = async {
        tokio::select! {
            client = connector("key").connect(client) => drop(client.unwrap()),
            _ = &mut response => unreachable!("the session never ends"),
        }
        while log.server_events_with("polled again").is_empty() {
            assert!(futures::poll!(&mut response).is_pending());
        }
    };
    answered.await;
    tracing::info!("outside");
    drop(response);

    let spans = log.server_spans();
    let [outer, connection] = &*spans else { panic!("{spans:?}") };
    assert_eq!(connection.parent, Some(outer.id), "a child of the span that is current at the call");
    assert!(connection.closed);
    for message in ["ready", "called", "polled", "polled again", "dropped"] {
        let events = log.server_events_with(message);
        assert!(!events.is_empty(), "{message}");
        assert!(events.iter().all(|event| event.span == Some(connection.id)), "{events:?}");
    }
    assert_eq!(log.server_events_with("outside")[0].span, None);
}

async fn handshake<S, C>(server: Acceptor<S>, client: Connector<C>)
where
    S: Mechanism<Role = mechanism::ServerRole>,
    C: Mechanism<Role = mechanism::ClientRole>,
{
    let (client_io, server_io) = duplex(64);
    let (accepted, connected) = tokio::join!(server.accept(server_io), client.connect(client_io));
    assert!(accepted.is_ok() && connected.is_ok());
}

#[tokio::test]
async fn span_has_mechanism_and_key_id_of_every_mechanism() {
    let (log, _capture) = Log::start();
    handshake(acceptor(&["key"]), connector("key")).await;
    handshake(Acceptor::new(mutual_server("a\nb")), mutual_client("a\nb", KEY)).await;
    let keys = KeyRing::new(support::entries(&["workers"])).unwrap();
    let workers = Connector::new(multiprocessing::Client::new(&key("workers")));
    handshake(Acceptor::new(multiprocessing::Server::new(keys)), workers).await;
    let spans = log.server_spans();
    let found: Vec<_> =
        spans.iter().map(|span| (&*span.fields["challenge.mechanism"], &*span.fields["user.id"])).collect();
    assert_eq!(found, [("one_way", "key"), ("mutual", "a\\nb"), ("multiprocessing", "workers")]);
    assert!(!spans[0].fields.contains_key("network.peer.address"), "a pipe has no address");
}

#[tokio::test]
async fn peer_that_is_not_admitted_is_counted_and_has_no_span() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let admission = Admission::builder()
        .max_pending(4)
        .max_per_source(1)
        .penalties(Penalties::new().refused(Duration::from_secs(60)))
        .build()
        .unwrap();
    let accept = |last: u8| {
        let (client, server) = duplex(64);
        // A dual-stack listener reports IPv4 addresses as IPv6.
        let ip = std::net::Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped();
        let server = WithInfo::new(server, TransportInfo::new().peer_addr((ip, 7).into()));
        (client, acceptor(&["key"]).admission(admission.clone()).accept(server))
    };
    let outcome = |outcome: Result<_, HandshakeError>| outcome.map(drop).unwrap_err().kind();

    let (_first_client, first) = accept(1);
    let mut first = pin!(first);
    assert!(futures::poll!(first.as_mut()).is_pending());
    // Three of four slots are in use, so that the limit for each source applies.
    let others = [5, 6].map(|last| admission.admit(Some([192, 0, 2, last].into())).unwrap());
    assert_eq!(outcome(accept(1).1.await), HandshakeErrorKind::SourceLimit);
    let (mut wrong, refused) = accept(2);
    let refused = tokio::spawn(refused);
    answer_by_hand(&mut wrong, "wrong").await;
    assert_eq!(read_verdict(&mut wrong).await, support::REFUSED);
    drop(wrong);
    assert_eq!(outcome(refused.await.unwrap()), HandshakeErrorKind::Refused);
    assert_eq!(outcome(accept(2).1.await), HandshakeErrorKind::Throttled);
    // Also counted: an admission without a stream, and a future that is never polled.
    assert_eq!(
        admission.admit(Some([192, 0, 2, 1].into())).unwrap_err().kind(),
        HandshakeErrorKind::SourceLimit
    );
    drop(accept(2));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(3));

    // The oldest handshake of the heaviest source is evicted: it counts as a handshake that has ended.
    let slots = [3, 4].map(|last| admission.admit(Some([192, 0, 2, last].into())).unwrap());
    assert_eq!(outcome(first.await), HandshakeErrorKind::Evicted);
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(4));
    assert_eq!(admission.pending(), 4);
    drop((slots, others));

    assert_eq!(
        meter.numbers(observe::NOT_ADMITTED),
        map([("reason=source_limit", 2), ("reason=throttled", 2)])
    );
    let ended = [("mechanism=one_way, outcome=refused", 1), ("mechanism=one_way, outcome=evicted", 1)];
    assert_eq!(meter.handshakes("server"), map(ended));
    let names: Vec<_> =
        meter.series().into_iter().filter(|name| name.starts_with(observe::HANDSHAKE_DURATION)).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));

    let spans = log.server_spans();
    assert_eq!(spans.len(), 2, "one for each admitted peer");
    assert_eq!(
        (&*spans[0].fields["network.peer.address"], &*spans[0].fields["network.type"]),
        ("192.0.2.1", "ipv4")
    );
    let events = log.server_events_with("not admitted");
    assert_eq!(events.len(), 4);
    assert!(
        events
            .iter()
            .all(|event| event.span.is_none() && event.fields["network.peer.address"].starts_with("192.0.2."))
    );
}

/// A service that is ready at the second poll, and whose response takes two more.
#[derive(Clone, Default)]
struct Slow {
    polled: bool,
}

impl<R: Send + 'static> Service<R> for Slow {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if std::mem::replace(&mut self.polled, true) {
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

/// The pipe holds one byte, so that there are many points at which the future is pending.
#[test]
fn dropped_at_any_point_is_counted_once_and_releases_everything() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
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
        let mut completed = false;
        for _ in 0..polls {
            completed = response.as_mut().poll(cx).is_ready();
            if completed {
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
        let before = std::mem::replace(&mut counted, meter.handshakes("server"));
        assert_eq!(sum(&counted), sum(&before) + 1, "after {polls} polls");
        if completed {
            break;
        }
    }
    let counted =
        ["abandoned", "success"].map(|outcome| counted[&format!("mechanism=mutual, outcome={outcome}")]);
    assert!(counted[0] > 50 && counted[1] > 3, "{counted:?}");
    let spans = log.server_spans();
    assert!(spans.iter().all(|span| span.closed));
    let count = |outcome: &str| {
        let spans = spans.iter().filter(|span| span.fields["challenge.outcome"] == outcome);
        i64::try_from(spans.count()).unwrap()
    };
    assert_eq!([count("abandoned"), count("success")], counted);
}

/// A listener that accepts what the test sends.
struct TestListener(mpsc::Receiver<io::Result<DuplexStream>>);

impl Listener for TestListener {
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
async fn gauges_return_to_zero_after_panic_abort_and_accept_error() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
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
                    assert_ne!(order, b'p', "intended");
                    begun.notify_one();
                    std::future::pending::<io::Result<()>>().await
                }
            }
        });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(TestListener(accepts), service)
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
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
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(2), "the silent peer and the session");
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
async fn panicked_or_aborted_handshake_is_abandoned() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let keys = KeyStore::new(|_| async { panics() });
    let layer = ChallengeLayer::new(mutual::Server::new(keys, Audience::new("orders").unwrap()));
    let (accept, accepts) = mpsc::channel(2);
    let service = ServiceBuilder::new().layer(layer).service(Slow::default());
    let server = tokio::spawn(serve(TestListener(accepts), service).into_future());
    let (_silent, io) = duplex(64);
    accept.send(Ok(io)).await.unwrap();
    let (client, io) = duplex(64);
    accept.send(Ok(io)).await.unwrap();
    let refused = mutual_client("alice", KEY).connect(client).await.unwrap_err();
    assert_eq!(refused.kind(), HandshakeErrorKind::UnexpectedEof);
    assert_eq!(meter.number(observe::PANICS), Some(1));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(1));
    assert_eq!(meter.handshakes("server"), map([("mechanism=mutual, outcome=abandoned", 1)]));

    // Aborts the handshake of the silent peer.
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    tokio::task::yield_now().await;
    assert_eq!(meter.handshakes("server"), map([("mechanism=mutual, outcome=abandoned", 2)]));
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
}

fn panics() -> io::Result<Vec<KeyEntry>> {
    panic!("intended")
}

#[tokio::test]
async fn pulled_connection_is_open_until_dropped() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut incoming = Incoming::builder(listener, layer).start().unwrap();
    let client = TcpStream::connect(*incoming.local_addr()).await.unwrap();
    let (accepted, connected) = tokio::join!(incoming.accept(), connector("key").connect(client));
    let (accepted, _connected) = (accepted.unwrap(), connected.unwrap());
    let closed = incoming.closed();
    drop(incoming);
    tokio::task::yield_now().await;
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(1));
    drop(accepted);
    closed.await.unwrap();
    assert_eq!(meter.number(observe::CONNECTIONS_OPEN), Some(0));
}

/// A gauge that was raised without this recorder must not be lowered in it.
#[tokio::test]
async fn gauges_stay_with_the_recorder_that_raised_them() {
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
async fn durations_are_in_seconds_for_every_outcome() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let (_silent, server) = duplex(64);
    acceptor(&["key"]).timeout(Duration::from_secs(3)).accept(server).await.unwrap_err();
    let (_silent, server) = duplex(64);
    let accept = acceptor(&["key"]).accept(server);
    advance(Duration::from_millis(1500)).await;
    drop(accept);
    let mut durations =
        |outcome: &str| meter.durations(&format!("role=server, mechanism=one_way, outcome={outcome}"));
    assert_eq!((durations("timed_out"), durations("abandoned")), (vec![3.0], vec![1.5]));
    let spans = log.server_spans();
    let durations: Vec<_> = spans.iter().map(|span| &*span.fields["challenge.handshake.duration"]).collect();
    assert_eq!(durations, ["3.0", "1.5"]);
}

#[tokio::test(start_paused = true)]
async fn described_metrics_have_units() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    observe::describe();
    let (_silent, server) = duplex(64);
    acceptor(&["key"]).timeout(Duration::from_secs(3)).accept(server).await.unwrap_err();

    let snapshot = recorder.snapshotter().snapshot().into_vec();
    let described = |name: &str| {
        let (_, unit, description, _) = snapshot.iter().find(|(key, ..)| key.key().name() == name).unwrap();
        assert!(description.is_some(), "{name}");
        *unit
    };
    assert_eq!(described(observe::HANDSHAKE_DURATION), Some(metrics::Unit::Seconds));
    // Some exporters append the unit to the name, and counts must not get a suffix.
    assert_eq!(described(observe::HANDSHAKES), None);
    assert_eq!(described(observe::HANDSHAKES_PENDING), None);
}

/// Accepts a peer that closes the connection in the middle of its answer.
async fn accept_early_close(acceptor: &Acceptor<one_way::Server>) {
    let (mut client, server) = duplex(64);
    let close = async {
        read_array::<32>(&mut client).await;
        client.write_u8(0).await.unwrap();
        drop(client);
    };
    let (accepted, ()) = tokio::join!(acceptor.accept(server), close);
    assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::UnexpectedEof);
}

/// Causes 1,000 failures of all sorts.
async fn flood(acceptor: &Acceptor<one_way::Server>, admission: &Admission) {
    let outcome = |outcome: Result<_, HandshakeError>| outcome.map(drop).unwrap_err().kind();

    for _ in 0..300 {
        let (client, server) = duplex(64);
        drop(client);
        assert_eq!(outcome(acceptor.accept(server).await), HandshakeErrorKind::Probe);
    }
    for _ in 0..200 {
        accept_early_close(acceptor).await;
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
    // Three quarters of the slots are in use, so that the limit for each source applies. The first one is admitted.
    let others: Vec<_> = (0..150).map(|_| admission.admit(None).unwrap()).collect();
    let mut slot = None;
    for _ in 0..=100 {
        match admission.admit(Some([192, 0, 2, 1].into())) {
            Ok(admitted) => slot = Some(admitted),
            Err(error) => assert_eq!(error.kind(), HandshakeErrorKind::SourceLimit),
        }
    }
    drop((slot, others));
}

#[tokio::test(start_paused = true)]
async fn flood_of_failures_is_summarized() {
    let (log, _capture) = Log::start();
    let admission = Admission::builder().max_pending(200).max_per_source(1).build().unwrap();
    let acceptor = acceptor(&["key"]).timeout(Duration::from_secs(1)).admission(admission.clone());
    flood(&acceptor, &admission).await;

    let probes = log.server_events_with("connection probed");
    assert_eq!(probes.len(), 300);
    assert!(probes.iter().all(|event| event.level == Level::DEBUG && event.span.is_some()));
    let mut others = log.server_events();
    others.retain(|event| event.message != "connection probed");
    assert_eq!(others.iter().filter(|event| event.fields.contains_key("error.type")).count(), 5);
    assert_eq!(others.len(), 5);
    let succeed = || async {
        let (client, server) = duplex(64);
        let (accepted, connected) = tokio::join!(acceptor.accept(server), connector("key").connect(client));
        assert!(accepted.is_ok() && connected.is_ok());
    };
    succeed().await;
    assert!(log.server_events_with("handshakes failed").is_empty(), "the interval has not ended");
    advance(Duration::from_secs(9)).await;
    succeed().await;

    let summaries = log.server_events_with("handshakes failed");
    let [summary] = &*summaries else { panic!("{summaries:?}") };
    assert_eq!((summary.level, summary.span), (Level::INFO, None));
    assert_eq!(summary.number("challenge.failures.total"), Some(1_000));
    assert_eq!(
        summary.number("challenge.failures.suppressed"),
        Some(695),
        "probes need no event of their own"
    );
    let by_kind = [
        ("probe", 300),
        ("unexpected_eof", 200),
        ("refused", 200),
        ("timed_out", 100),
        ("abandoned", 100),
        ("source_limit", 100),
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
    assert_eq!(log.server_events().iter().filter(|event| event.level < Level::DEBUG).count(), 6);

    // A new interval, which ends with the next failure. The rest of the following one is reported when the last clone of
    // the admission is dropped.
    for _ in 0..2 {
        advance(Duration::from_secs(10)).await;
        for _ in 0..7 {
            accept_early_close(&acceptor).await;
        }
    }
    let (_client, server) = duplex(64);
    let last = acceptor.accept(server);
    drop((acceptor, admission));
    assert_eq!(log.server_events_with("handshakes failed").len(), 2);
    drop(last);
    let summaries = log.server_events_with("handshakes failed");
    let counts = |name: &str| {
        let name = format!("challenge.failures.{name}");
        summaries.iter().map(|event| event.number(&name)).collect::<Vec<_>>()
    };
    assert_eq!(counts("total"), [Some(1_000), Some(7), Some(8)]);
    assert_eq!(counts("suppressed"), [Some(695), Some(2), Some(3)]);
    assert_eq!(counts("probe"), [Some(300), None, None]);
    assert_eq!(counts("unexpected_eof"), [Some(200), Some(7), Some(7)]);
    assert_eq!(counts("abandoned"), [Some(100), None, Some(1)]);
}

/// The level is `WARN`, also for a summary that includes such a failure.
#[tokio::test(start_paused = true)]
async fn failure_of_this_side_is_a_warning() {
    let (log, _capture) = Log::start();
    let keys = KeyStore::new(|_| async { Err::<Vec<KeyEntry>, _>(io::Error::other("the database is down")) });
    let server = Acceptor::new(mutual::Server::new(keys, Audience::new("orders").unwrap()));
    for _ in 0..6 {
        let (client, io) = duplex(64);
        let (accepted, _) = tokio::join!(server.accept(io), mutual_client("alice", KEY).connect(client));
        assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::KeySource);
    }
    drop(server);
    let events = log.server_events();
    assert_eq!(events.len(), 6);
    assert!(events.iter().all(|event| event.level == Level::WARN));
    assert_eq!(events[0].fields["error"], "no key available for the handshake: the database is down");
    assert_eq!(events[5].number("challenge.failures.key_source"), Some(6));
}

/// A server whose sessions fail, panic or end, as their first byte says.
struct FailingServer {
    accept: mpsc::Sender<io::Result<DuplexStream>>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Shutdown>,
}

impl FailingServer {
    fn start(on_error: Option<mpsc::UnboundedSender<String>>) -> Self {
        let (accept, accepts) = mpsc::channel(8);
        let service = ServiceBuilder::new().layer(ChallengeLayer::new(mutual_server("alice"))).service_fn(
            |mut stream: Authenticated<Connection<DuplexStream>, mutual::Peer>| async move {
                match stream.read_u8().await? {
                    b'f' => Err(BoxError::from("the disk is full")),
                    b'p' => panic!("intended\n"),
                    _ => Ok(()),
                }
            },
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = serve(WithAddr(TestListener(accepts)), service)
            .graceful_shutdown(async { stopped.await.unwrap_or_default() });
        if let Some(on_error) = on_error {
            server = server.on_error(move |error| on_error.send(error.to_string()).unwrap());
        }
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { accept, stop, server }
    }

    /// Causes an accept error, an error and a panic of a session, and a refused handshake; then shuts down.
    async fn fail_in_every_way(self) {
        self.accept.send(Err(io::Error::other("no more descriptors"))).await.unwrap();
        for (text, order) in [(KEY, b'f'), (KEY, b'p'), ("another sixteen bytes", b'-'), (KEY, b'-')] {
            let (client, io) = duplex(64);
            self.accept.send(Ok(io)).await.unwrap();
            if let Ok(mut session) = mutual_client("alice", text).connect(client).await {
                session.write_u8(order).await.unwrap();
                assert_eq!(session.read(&mut [0]).await.unwrap(), 0);
            }
        }
        self.stop.send(()).unwrap();
        let shutdown = self.server.await.unwrap();
        assert_eq!(shutdown.aborted, 0, "{shutdown:?}");
    }
}

/// A listener whose peers have an address.
struct WithAddr(TestListener);

impl Listener for WithAddr {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, SocketAddr)>> {
        self.0.poll_accept(cx).map_ok(|(io, ())| (io, ([192, 0, 2, 1], 7).into()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 2], 8888).into())
    }
}

#[tokio::test(start_paused = true)]
async fn serve_without_on_error_logs_errors() {
    let (log, _capture) = Log::start();
    FailingServer::start(None).fail_in_every_way().await;

    let events: Vec<_> = log.server_events().into_iter().filter(|event| event.level < Level::DEBUG).collect();
    let logged: Vec<_> = events.iter().map(|event| (&*event.message, event.level)).collect();
    assert_eq!(
        logged,
        [
            ("accept failed", Level::WARN),
            ("connection failed", Level::INFO),
            ("service panicked", Level::ERROR),
            ("handshake failed", Level::INFO),
        ],
        "each failure is logged once, that of the handshake by the handshake itself"
    );
    let [accept, connection, panic, handshake] = &*events else { unreachable!("compared above") };
    assert!(events.iter().all(|event| event.target == "tower_challenge"));
    assert_eq!(accept.fields["error"], "no more descriptors");
    assert_eq!(connection.fields["error"], "the disk is full");
    assert_eq!(panic.fields["panic.message"], "intended\\n", "one line");
    for event in [connection, panic] {
        assert_eq!(event.fields["network.peer.address"], "192.0.2.1");
    }
    assert!(!accept.fields.contains_key("network.peer.address"));
    assert!(handshake.fields["error"].contains("the proof does not match"));
}

#[tokio::test(start_paused = true)]
async fn on_error_replaces_the_log() {
    let (log, _capture) = Log::start();
    let (report, mut reports) = mpsc::unbounded_channel();
    FailingServer::start(Some(report)).fail_in_every_way().await;

    let events: Vec<_> = log.server_events().into_iter().filter(|event| event.level < Level::DEBUG).collect();
    let logged: Vec<_> = events.iter().map(|event| &*event.message).collect();
    assert_eq!(logged, ["handshake failed"]);
    let mut reported = Vec::new();
    while let Some(error) = reports.recv().await {
        reported.push(error);
    }
    assert_eq!(
        reported,
        [
            "accept failed: no more descriptors",
            "connection from 192.0.2.1:7: the disk is full",
            "connection from 192.0.2.1:7: the service panicked: intended\\n",
            &format!("connection from 192.0.2.1:7: {}", events[0].fields["error"]),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn incoming_without_on_error_logs_errors() {
    let (log, _capture) = Log::start();
    let (accept, accepts) = mpsc::channel(8);
    let layer = ChallengeLayer::new(mutual_server("alice"));
    let mut incoming = Incoming::builder(WithAddr(TestListener(accepts)), layer).start().unwrap();
    accept.send(Err(io::Error::other("no more descriptors"))).await.unwrap();
    for text in ["another sixteen bytes", KEY] {
        let (client, io) = duplex(64);
        accept.send(Ok(io)).await.unwrap();
        let connected = mutual_client("alice", text).connect(client).await;
        assert_eq!(connected.is_ok(), text == KEY);
    }
    incoming.accept().await.unwrap();
    let events: Vec<_> = log.server_events().into_iter().filter(|event| event.level < Level::DEBUG).collect();
    let logged: Vec<_> = events.iter().map(|event| &*event.message).collect();
    assert_eq!(logged, ["accept failed", "handshake failed"]);
}

/// Reads the metrics of the example as Prometheus does.
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

/// Reads the metrics until they contain all of these lines: the server counts after the client has its answer.
fn scrape_until(addr: &str, lines: &[&str]) -> String {
    let start = std::time::Instant::now();
    loop {
        let text = scrape(addr);
        let missing = lines.iter().find(|line| !text.lines().any(|found| found == **line));
        match missing {
            None => return text,
            Some(line) => assert!(start.elapsed() < Duration::from_secs(60), "no {line:?} in {text}"),
        }
    }
}

#[test]
fn example_output() {
    use std::io::{Read as _, Write as _};

    use crate::process::{Running, example, run, stderr, stdout};

    let one_way = ["--mechanism", "one-way"];
    let args = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log", "debug"];
    let mut server = example("example-observe");
    let mut server = Running::start(server.args(one_way).args(args).env("CHALLENGE_KEY", "open sesame"));
    let addr = server.line().strip_prefix("listening on ").expect("it prints its address").to_owned();
    let metrics = server.line_with("metrics on ");
    let metrics = metrics.split_once("http://").unwrap().1.strip_suffix("/metrics").unwrap();
    let talk = |key: &str, input: &str| {
        run(example("client").args(one_way).args(["--connect", &addr]).env("CHALLENGE_KEY", key), input)
    };

    let silent = std::net::TcpStream::connect(&addr).unwrap();
    assert_eq!(stdout(&talk("open sesame", "hello\n")), "hello\n");
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
    let refused = format!("error: {addr}: handshake refused; the server's log says why\n");
    assert_eq!(stderr(&talk("wrong key", "hello\n")), refused);
    let line = server.line_with("handshake failed");
    assert!(line.contains("error.type=\"refused\""), "{line}");
    assert!(line.contains("the answer matches none of the keys"), "{line}");
    let early_close = |sends: &[u8]| {
        let mut peer = std::net::TcpStream::connect(&addr).unwrap();
        peer.read_exact(&mut [0; 32]).unwrap();
        peer.write_all(sends).unwrap();
    };
    early_close(b"half an");
    assert!(server.line_with("handshake failed").contains("error.type=\"unexpected_eof\""));
    early_close(b"");

    let text = scrape_until(
        metrics,
        &[
            "challenge_handshakes_total{role=\"server\",mechanism=\"one_way\",outcome=\"success\"} 1",
            "challenge_handshakes_total{role=\"server\",mechanism=\"one_way\",outcome=\"refused\"} 1",
            "challenge_handshakes_total{role=\"server\",mechanism=\"one_way\",outcome=\"unexpected_eof\"} 1",
            "challenge_handshakes_total{role=\"server\",mechanism=\"one_way\",outcome=\"probe\"} 1",
            "challenge_handshake_duration_seconds_count{role=\"server\",mechanism=\"one_way\",outcome=\"success\"} 1",
            "challenge_handshakes_pending 1",
            "challenge_connections_open 1",
            "challenge_connections_accepted_total 5",
            "observe_sources_throttled 0",
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
