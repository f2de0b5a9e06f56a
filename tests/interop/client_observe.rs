//! Spans, events and metrics of handshakes on the client's side, and of probes.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use metrics_util::debugging::DebuggingRecorder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::advance;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{
    Acceptor, AnswerLayer, Connector, HandshakeErrorKind, Key, KeyEntry, multiprocessing, observe, one_way,
};
use tracing::{Instrument as _, Level};

use crate::support::{acceptor, connector, entries, key, read_array};
use crate::watch::{Log, LogEvent, Meter, Span};

const KEY: &str = "sixteen bytes or more";

fn mutual_server() -> Acceptor<mutual::Server<mutual::KeyRing>> {
    let ring = mutual::KeyRing::new([KeyEntry::new("alice", key(KEY)).unwrap()]).unwrap();
    Acceptor::new(mutual::Server::new(ring, Audience::new("orders").unwrap()))
}

fn mutual_client(id: &str, text: &str) -> Connector<mutual::Client> {
    Connector::new(mutual::Client::new(id, &key(text), Audience::new("orders").unwrap()).unwrap())
}

fn client_spans(log: &Log) -> Vec<Span> {
    let mut spans = log.spans();
    spans.retain(|span| span.fields["challenge.role"] == "client");
    spans
}

fn client_events(log: &Log) -> Vec<LogEvent> {
    let mut events = log.events();
    events.retain(|event| event.role.as_deref() == Some("client"));
    events
}

fn map<const N: usize>(entries: [(&str, i64); N]) -> BTreeMap<String, i64> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Connects to a server that closes the connection without a word.
async fn connect_to_closed(connector: &Connector<one_way::Client>) {
    let (client, server) = duplex(64);
    drop(server);
    let error = connector.connect(client).await.unwrap_err();
    assert_eq!(error.kind(), HandshakeErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn span_has_role_server_address_and_outcome() {
    let (log, _capture) = Log::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = mutual_server();
    for text in [KEY, "another sixteen bytes"] {
        let client = TcpStream::connect(addr).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let connect = async { mutual_client("alice", text).connect(client).await.map(drop) };
        let (accepted, connected) = tokio::join!(server.accept(io), connect);
        assert_eq!((accepted.is_ok(), connected.is_ok()), (text == KEY, text == KEY));
    }

    let spans = client_spans(&log);
    let [accepted, refused] = &*spans else { panic!("{spans:?}") };
    for span in [accepted, refused] {
        assert_eq!((span.name, span.level, span.target), ("connection", Level::INFO, "tower_challenge"));
        assert!(span.closed, "it ends with the handshake");
        let port = addr.port().to_string();
        for (field, value) in [
            ("network.peer.address", "127.0.0.1"),
            ("network.peer.port", &*port),
            ("network.type", "ipv4"),
            ("challenge.mechanism", "mutual"),
        ] {
            assert_eq!(span.fields[field], value);
        }
        let duration: f64 = span.fields["challenge.handshake.duration"].parse().unwrap();
        assert!((0.0..10.0).contains(&duration));
    }
    assert_eq!(accepted.fields["challenge.outcome"], "success");
    assert!(!accepted.fields.contains_key("error.type"));
    assert_eq!(refused.fields["challenge.outcome"], "refused");
    assert_eq!(refused.fields["error.type"], "refused");

    let events = client_events(&log);
    let logged: Vec<_> = events.iter().map(|event| (&*event.message, event.level, event.span)).collect();
    assert_eq!(
        logged,
        [
            ("handshake succeeded", Level::DEBUG, Some(accepted.id)),
            ("handshake failed", Level::INFO, Some(refused.id)),
        ]
    );
}

/// The handshake of a tower layer belongs to the request that needs the connection.
#[tokio::test]
async fn span_of_a_handshake_is_a_child_of_the_current_span() {
    let (log, _capture) = Log::start();
    let (client, server) = duplex(64);
    let client = std::sync::Mutex::new(Some(client));
    let transport = service_fn(move |()| {
        let client = client.lock().unwrap().take().expect("called once");
        async { Ok::<DuplexStream, io::Error>(client) }
    });
    let connector = AnswerLayer::new(one_way::Client::new(&key("key"))).layer(transport);
    let request = tracing::info_span!(target: "tower_challenge", "request", challenge.role = "none");
    let connect = connector.oneshot(()).instrument(request);
    let (connected, accepted) = tokio::join!(connect, acceptor(&["key"]).accept(server));
    assert!(connected.is_ok() && accepted.is_ok());
    let spans = log.spans();
    let request = spans.iter().find(|span| span.name == "request").unwrap();
    let [handshake] = &*client_spans(&log) else { panic!("{spans:?}") };
    assert_eq!(handshake.parent, Some(request.id));
    let server = spans.iter().find(|span| span.fields["challenge.role"] == "server").unwrap();
    assert_eq!(server.parent, None);
}

/// A client that cannot reach its server may try again and again.
#[tokio::test(start_paused = true)]
async fn failures_are_limited_and_summarized() {
    let (log, _capture) = Log::start();
    let connector = connector("key");
    for attempt in 0..20 {
        // Clones share the limit.
        connect_to_closed(&if attempt % 2 == 0 { connector.clone() } else { connector.clone().clone() })
            .await;
    }
    let events = client_events(&log);
    assert_eq!(events.len(), 5);
    for event in &events {
        assert_eq!((&*event.message, event.level), ("handshake failed", Level::INFO));
        assert_eq!(event.fields["error.type"], "unexpected_eof");
    }

    // The next interval begins with the next failure.
    advance(Duration::from_secs(10)).await;
    connect_to_closed(&connector).await;
    assert_eq!(client_events(&log).len(), 6);
    let summaries = log.events_with("handshakes failed");
    let [summary] = &*summaries else { panic!("{summaries:?}") };
    assert_eq!((summary.level, summary.span), (Level::INFO, None));
    assert_eq!(summary.number("challenge.failures.total"), Some(20));
    assert_eq!(summary.number("challenge.failures.suppressed"), Some(15));
    assert_eq!(summary.number("challenge.failures.unexpected_eof"), Some(20));

    // What was suppressed is reported when the last clone is dropped.
    for _ in 0..7 {
        connect_to_closed(&connector).await;
    }
    drop(connector);
    let summaries = log.events_with("handshakes failed");
    assert_eq!(summaries.len(), 2);
    assert_eq!(summaries[1].number("challenge.failures.total"), Some(8));
    assert_eq!(summaries[1].number("challenge.failures.suppressed"), Some(3));
}

/// The failures of the server that a client talks to do not count for the client's limit, nor the other way round.
#[tokio::test(start_paused = true)]
async fn each_side_has_its_own_limit() {
    let (log, _capture) = Log::start();
    let (connector, acceptor) = (mutual_client("alice", "another sixteen bytes"), mutual_server());
    for _ in 0..8 {
        let (client, server) = duplex(64);
        let connect = async { connector.connect(client).await.map(drop) };
        let (accepted, connected) = tokio::join!(acceptor.accept(server), connect);
        assert!(accepted.is_err() && connected.is_err());
    }
    let failed = log.events_with("handshake failed");
    for role in ["client", "server"] {
        assert_eq!(failed.iter().filter(|event| event.role.as_deref() == Some(role)).count(), 5, "{role}");
    }
    drop((connector, acceptor));
    let suppressed: Vec<_> = log
        .events_with("handshakes failed")
        .iter()
        .map(|event| event.number("challenge.failures.suppressed"))
        .collect();
    assert_eq!(suppressed, [Some(3), Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn metrics_have_the_role_and_the_outcome() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let connector = connector("key").timeout(Duration::from_secs(3));

    let (client, server) = duplex(64);
    let (accepted, connected) = tokio::join!(acceptor(&["key"]).accept(server), connector.connect(client));
    assert!(accepted.is_ok() && connected.is_ok());
    let (client, _silent) = duplex(64);
    assert_eq!(connector.connect(client).await.unwrap_err().kind(), HandshakeErrorKind::TimedOut);
    connect_to_closed(&connector).await;
    let (client, mut server) = duplex(64);
    server.write_all(&[0; 64]).await.unwrap();
    assert_eq!(connector.connect(client).await.unwrap_err().kind(), HandshakeErrorKind::Malformed);
    // Dropped before it completes, e.g. by a timeout around it, whether or not it was ever polled.
    let (client, _silent) = duplex(64);
    let connect = connector.connect(client);
    assert!(tokio::time::timeout(Duration::from_secs(1), connect).await.is_err());
    let (client, _silent) = duplex(64);
    drop(connector.connect(client));

    assert_eq!(
        meter.handshakes("client"),
        map([
            ("mechanism=one_way, outcome=abandoned", 2),
            ("mechanism=one_way, outcome=malformed", 1),
            ("mechanism=one_way, outcome=success", 1),
            ("mechanism=one_way, outcome=timed_out", 1),
            ("mechanism=one_way, outcome=unexpected_eof", 1),
        ])
    );
    assert_eq!(meter.handshakes("server"), map([("mechanism=one_way, outcome=success", 1)]));
    let mut durations =
        |outcome: &str| meter.durations(&format!("role=client, mechanism=one_way, outcome={outcome}"));
    assert_eq!(durations("timed_out"), [3.0]);
    assert_eq!(durations("abandoned"), [1.0, 0.0]);
    // A client has no admission control.
    assert_eq!(meter.number(observe::HANDSHAKES_PENDING), Some(0));
}

#[tokio::test(start_paused = true)]
async fn abandoned_handshake_has_a_span_and_an_event() {
    let (log, _capture) = Log::start();
    let (client, _silent) = duplex(64);
    let connect = tokio::spawn(connector("key").connect(client));
    advance(Duration::from_millis(1_500)).await;
    connect.abort();
    assert!(connect.await.unwrap_err().is_cancelled());
    let spans = client_spans(&log);
    let [span] = &*spans else { panic!("{spans:?}") };
    assert!(span.closed);
    assert_eq!(span.fields["challenge.outcome"], "abandoned");
    assert_eq!(span.fields["challenge.handshake.duration"], "1.5");
    assert!(!span.fields.contains_key("network.peer.address"), "a pipe has none");
    let events = client_events(&log);
    let [event] = &*events else { panic!("{events:?}") };
    assert_eq!(
        (&*event.message, event.level, event.span),
        ("handshake abandoned", Level::INFO, Some(span.id))
    );
}

/// A server that closes at once is worth an event: it may refuse this client.
#[tokio::test]
async fn closed_connection_is_not_a_probe() {
    let (log, _capture) = Log::start();
    connect_to_closed(&connector("key")).await;
    let events = client_events(&log);
    let [event] = &*events else { panic!("{events:?}") };
    assert_eq!((&*event.message, event.level), ("handshake failed", Level::INFO));
    assert!(event.fields["error"].contains("the server sent nothing"), "{event:?}");
}

/// Answers like a server of `multiprocessing` that asks for a digest that does not exist.
async fn unsupported_digest(mut io: DuplexStream) {
    let challenge = [&b"#CHALLENGE#{md4}"[..], &[7; 40]].concat();
    io.write_u32(challenge.len().try_into().unwrap()).await.unwrap();
    io.write_all(&challenge).await.unwrap();
    let _ = io.read(&mut [0; 64]).await;
}

/// Nor its hexadecimal digits, whatever the outcome.
#[tokio::test(start_paused = true)]
async fn key_is_in_no_span_event_or_metric() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let secrets = [Key::generate().unwrap(), Key::generate().unwrap()];
    let [ours, theirs] = &secrets;

    for server_key in [ours, theirs] {
        let ring = one_way::KeyRing::new([KeyEntry::new("alice", server_key.clone()).unwrap()]).unwrap();
        let server = Acceptor::new(one_way::Server::new(ring));
        let (client, io) = duplex(64);
        let connector = Connector::new(one_way::Client::new(ours));
        let connect = async { connector.connect(client).await.map(drop) };
        let _ = tokio::join!(server.accept(io), connect);

        let entry = |key: &Key| KeyEntry::new("alice", key.clone()).unwrap();
        let ring = mutual::KeyRing::new([entry(server_key)]).unwrap();
        let server = Acceptor::new(mutual::Server::new(ring, Audience::new("orders").unwrap()));
        let connector = Connector::new(mutual::Client::from_entry(&entry(ours), "orders").unwrap());
        let (client, io) = duplex(64);
        let connect = async { connector.connect(client).await.map(drop) };
        let _ = tokio::join!(server.accept(io), connect);

        let ring = multiprocessing::KeyRing::new([entry(server_key)]).unwrap();
        let server = Acceptor::new(multiprocessing::Server::new(ring));
        let connector = Connector::new(multiprocessing::Client::new(ours));
        let (client, io) = duplex(64);
        let connect = async { connector.connect(client).await.map(drop) };
        let _ = tokio::join!(server.accept(io), connect);
    }
    let connector = Connector::new(multiprocessing::Client::new(ours));
    let (client, io) = duplex(64);
    let (connected, ()) = tokio::join!(connector.connect(client), unsupported_digest(io));
    assert!(connected.is_err());
    let (client, _silent) = duplex(64);
    drop(Connector::new(one_way::Client::new(ours)).connect(client));

    let outcomes: Vec<_> =
        client_spans(&log).iter().map(|span| span.fields["challenge.outcome"].clone()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "success").count(), 3, "{outcomes:?}");
    assert_eq!(outcomes.len(), 8);
    let written = format!("{:?} {:?} {:?}", log.spans(), log.events(), meter.series()).to_lowercase();
    for secret in &secrets {
        assert!(!written.contains(secret.to_hex().as_str()));
        let debug = format!("{:?}", secret.expose_secret());
        assert!(!written.contains(debug.trim_matches(['[', ']'])));
        assert!(!written.contains(&secret.expose_secret().escape_ascii().to_string().to_lowercase()));
    }
}

/// Neither the proof nor the nonce of a refused answer, which would allow to guess a weak key offline.
#[tokio::test]
async fn answer_is_in_no_event() {
    let (log, _capture) = Log::start();
    let (client, mut server) = duplex(64);
    let connect = tokio::spawn(connector("key").connect(client));
    let nonce = [0x5a; 32];
    server.write_all(&nonce).await.unwrap();
    let answer = read_array::<16>(&mut server).await;
    server.write_all(crate::support::REFUSED.as_bytes()).await.unwrap();
    drop(server);
    assert_eq!(connect.await.unwrap().unwrap_err().kind(), HandshakeErrorKind::Refused);
    let written = format!("{:?} {:?}", log.spans(), log.events()).to_lowercase();
    for bytes in [&nonce[..], &answer] {
        let hex = base16ct::lower::encode_string(bytes);
        assert!(!written.contains(&hex));
        assert!(!written.contains(format!("{bytes:?}").trim_matches(['[', ']'])));
    }
}

/// Health checks by the thousand: no line of a log above `DEBUG`, and no summary.
#[tokio::test(start_paused = true)]
async fn ten_thousand_probes_are_not_logged() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);
    let acceptor = acceptor(&["key"]);
    for probe in 0..10_000 {
        let (client, server) = duplex(64);
        drop(client);
        assert_eq!(acceptor.accept(server).await.unwrap_err().kind(), HandshakeErrorKind::Probe);
        if probe % 100 == 0 {
            advance(Duration::from_secs(1)).await;
        }
    }
    drop(acceptor);
    let events = log.events();
    assert_eq!(events.len(), 10_000);
    assert!(events.iter().all(|event| event.message == "connection probed" && event.level == Level::DEBUG));
    assert_eq!(meter.handshakes("server"), map([("mechanism=one_way, outcome=probe", 10_000)]));
}

/// They do not use up the events of real failures, and the summary of those counts them.
#[tokio::test(start_paused = true)]
async fn probes_do_not_hide_failures() {
    let (log, _capture) = Log::start();
    let acceptor = Acceptor::new(one_way::Server::new(one_way::KeyRing::new(entries(&["key"])).unwrap()));
    for _ in 0..100 {
        let (client, server) = duplex(64);
        drop(client);
        acceptor.accept(server).await.unwrap_err();
    }
    for _ in 0..6 {
        let (mut client, server) = duplex(64);
        let hang_up = async {
            read_array::<32>(&mut client).await;
            client.write_all(b"x").await.unwrap();
            drop(client);
        };
        let (accepted, ()) = tokio::join!(acceptor.accept(server), hang_up);
        assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::UnexpectedEof);
    }
    drop(acceptor);
    assert_eq!(log.events_with("handshake failed").len(), 5);
    let summaries = log.events_with("handshakes failed");
    let [summary] = &*summaries else { panic!("{summaries:?}") };
    assert_eq!(summary.number("challenge.failures.suppressed"), Some(1));
    assert_eq!(summary.number("challenge.failures.probe"), Some(100));
}
