//! Revoked keys: what ends, what continues, and that nothing revoked reaches a service.
#![cfg(all(feature = "mutual", feature = "net"))]

use std::convert::Infallible;
use std::future::ready;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower::{Layer as _, ServiceBuilder, ServiceExt as _, service_fn};
use tower_challenge::key::{KeySource, Revoker};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Acceptor, Authenticated, ChallengeLayer, Connection, Connector, HandshakeErrorKind,
    Identity, Incoming, Key, KeyEntry, KeyStore, serve,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

fn key(n: u8) -> Key {
    Key::new([n; 32]).unwrap()
}

fn entry(id: &str, n: u8) -> KeyEntry {
    KeyEntry::new(id, key(n)).unwrap()
}

fn audience() -> Audience {
    Audience::new("orders").unwrap()
}

fn connector(id: &str, n: u8) -> Connector<mutual::Client> {
    Connector::new(mutual::Client::from_entry(&entry(id, n), "orders").unwrap())
}

fn ring<const N: usize>(entries: [KeyEntry; N]) -> mutual::KeyRing {
    mutual::KeyRing::new(entries).unwrap()
}

/// A session of this key over a pipe: the server's end, and the client's.
async fn session(
    acceptor: &Acceptor<mutual::Server<mutual::KeyRing>>,
    id: &str,
    n: u8,
) -> (Authenticated<DuplexStream, mutual::Peer>, Authenticated<DuplexStream, mutual::ServerPeer>) {
    let (client, server) = duplex(256);
    let connector = connector(id, n);
    let (accepted, connected) = tokio::join!(acceptor.accept(server), connector.connect(client));
    (accepted.unwrap(), connected.unwrap())
}

fn is_revoked<IO, P>(stream: &Authenticated<IO, P>) -> bool {
    stream.revocation().expect("its keys can be revoked").is_revoked()
}

#[tokio::test]
async fn key_that_stays_is_not_revoked_by_replacement() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (alice, _client) = session(&acceptor, "alice", 1).await;
    for entries in [
        vec![entry("alice", 1), entry("bob", 2)],
        vec![entry("bob", 2), entry("alice", 1)],
        vec![entry("alice", 3), entry("alice", 1)],
        vec![entry("alice", 1)],
        vec![entry("alice", 1), entry("alice", 1)],
    ] {
        keys.replace(entries).unwrap();
        assert!(!is_revoked(&alice));
    }
    assert!(keys.replace([]).is_err(), "a failed replacement revokes nothing");
    assert!(!is_revoked(&alice));
}

#[tokio::test]
async fn new_metadata_does_not_revoke() {
    let with = |metadata| [entry("alice", 1).with_metadata(metadata)];
    let keys: mutual::KeyRing<&str> = mutual::KeyRing::new(with("guest")).unwrap();
    let found = keys.look_up(b"alice").await.unwrap();
    keys.replace(with("administrator")).unwrap();
    let identity = found.iter().next().unwrap().identity();
    assert!(!identity.revocation().unwrap().is_revoked());
    assert_eq!(*identity.metadata(), "guest");
    let found = keys.look_up(b"alice").await.unwrap();
    assert_eq!(*found.iter().next().unwrap().identity().metadata(), "administrator");
}

#[tokio::test]
async fn removed_key_is_revoked_even_if_its_id_has_others() {
    let keys = ring([entry("alice", 1), entry("alice", 2), entry("bob", 3)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (first, _a) = session(&acceptor, "alice", 1).await;
    let (second, _b) = session(&acceptor, "alice", 2).await;
    let (bob, _c) = session(&acceptor, "bob", 3).await;
    let revoked = first.revoked();
    keys.replace([entry("alice", 2), entry("bob", 3)]).unwrap();
    timeout(LONG, revoked).await.unwrap();
    assert!(is_revoked(&first) && !is_revoked(&second) && !is_revoked(&bob));
}

#[tokio::test]
async fn key_under_another_id_is_another_key() {
    let keys = ring([entry("alice", 1)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (alice, _client) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("carol", 1)]).unwrap();
    assert!(is_revoked(&alice));
}

#[tokio::test]
async fn adding_a_key_again_revives_nothing() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (old, _a) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("bob", 2)]).unwrap();
    keys.replace([entry("alice", 1), entry("bob", 2)]).unwrap();
    assert!(is_revoked(&old));
    let (new, _b) = session(&acceptor, "alice", 1).await;
    assert!(!is_revoked(&new));
    keys.replace([entry("bob", 2)]).unwrap();
    assert!(is_revoked(&new));
}

/// Also a session that first asks after the replacement.
#[tokio::test]
async fn session_that_looks_late_sees_the_revocation() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (alice, _a) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("alice", 1)]).unwrap();
    keys.replace([entry("bob", 2)]).unwrap();
    timeout(LONG, alice.revoked()).await.unwrap();
}

#[tokio::test]
async fn without_a_setting_sessions_continue() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (mut server, mut client) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("bob", 2)]).unwrap();
    client.write_all(b"still here").await.unwrap();
    let mut buf = [0; 10];
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"still here");
}

#[tokio::test]
async fn both_halves_of_a_split_stream_wake_and_fail() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor =
        Acceptor::new(mutual::Server::new(keys.clone(), audience())).end_revoked_sessions(Duration::ZERO);
    let (server, _client) = session(&acceptor, "alice", 1).await;
    let (mut read, mut write) = tokio::io::split(server);
    let reader = tokio::spawn(async move { read.read(&mut [0]).await });
    // More than the pipe holds: the peer does not read.
    let writer = tokio::spawn(async move { write.write_all(&[0; 4096]).await });
    tokio::task::yield_now().await;
    assert!(!reader.is_finished() && !writer.is_finished());
    keys.replace([entry("bob", 2)]).unwrap();
    let error = timeout(LONG, reader).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    let error = timeout(LONG, writer).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the key of this session was revoked");
}

#[tokio::test(start_paused = true)]
async fn grace_period_delays_the_end() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()))
        .end_revoked_sessions(Duration::from_secs(5));
    let (mut server, mut client) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("bob", 2)]).unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    let begin = tokio::time::Instant::now();
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    assert_eq!(begin.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn serve_ends_revoked_sessions_that_do_no_io() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let layer = ChallengeLayer::new(mutual::Server::new(keys.clone(), audience()))
        .end_revoked_sessions(Duration::ZERO);
    let (started, mut sessions) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer).service_fn(
        move |stream: Authenticated<Connection<TcpStream>, mutual::Peer>| {
            started.send(()).unwrap();
            async move {
                std::future::pending::<()>().await;
                drop(stream);
                Ok::<_, Infallible>(())
            }
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (errors, mut error) = mpsc::unbounded_channel();
    let server = serve(listener, service).on_error(move |error| errors.send(error).unwrap());
    let server = tokio::spawn(server.into_future());

    let client = TcpStream::connect(addr).await.unwrap();
    let mut client = connector("alice", 1).connect(client).await.unwrap();
    sessions.recv().await.unwrap();
    keys.replace([entry("bob", 2)]).unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the connection is closed");
    match error.recv().await.unwrap() {
        ServeError::Connection { error, .. } => {
            assert!(matches!(error.downcast_ref(), Some(AcceptError::Revoked)), "{error}");
        }
        error => panic!("{error}"),
    }
    server.abort();
}

#[tokio::test]
async fn incoming_ends_revoked_sessions() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let layer = ChallengeLayer::new(mutual::Server::new(keys.clone(), audience()))
        .end_revoked_sessions(Duration::ZERO);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut incoming = Incoming::builder(listener, layer).start().unwrap();
    let client = TcpStream::connect(incoming.local_addr()).await.unwrap();
    let _client = connector("alice", 1).connect(client).await.unwrap();
    let mut stream = incoming.accept().await.unwrap();
    let reading = tokio::spawn(async move { stream.read_u8().await });
    tokio::task::yield_now().await;
    keys.replace([entry("bob", 2)]).unwrap();
    let error = timeout(LONG, reading).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
}

/// A key that is revoked after it was found, and before the service is called.
#[tokio::test]
async fn key_revoked_during_the_handshake_never_reaches_the_service() {
    let revoker = Arc::new(Revoker::new());
    let found = Arc::clone(&revoker);
    let store = KeyStore::new(move |_| {
        let entry = entry("alice", 1).with_revocation(found.revocation());
        // The store learns of the revocation just after it has returned the key.
        found.revoke();
        ready(Ok::<_, Infallible>([entry]))
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let service = ChallengeLayer::new(mutual::Server::new(store, audience())).layer(service_fn(
        move |_: Authenticated<DuplexStream, mutual::Peer>| {
            counted.fetch_add(1, Ordering::SeqCst);
            ready(Ok::<_, Infallible>(()))
        },
    ));
    let (client, server) = duplex(256);
    let connector = connector("alice", 1);
    let (outcome, _) = tokio::join!(service.oneshot(server), connector.connect(client));
    match outcome.unwrap_err() {
        AcceptError::Handshake(error) => assert_eq!(error.kind(), HandshakeErrorKind::Revoked),
        error => panic!("{error}"),
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

/// A key that is revoked while its peer waits for a service that is not ready.
#[tokio::test]
async fn key_revoked_while_waiting_never_reaches_the_service() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let (mock, mut handle) = tower_test::mock::pair::<Authenticated<DuplexStream, mutual::Peer>, ()>();
    handle.allow(0);
    let service = ChallengeLayer::new(mutual::Server::new(keys.clone(), audience())).layer(mock);
    let (client, server) = duplex(256);
    let response = tokio::spawn(service.oneshot(server));
    connector("alice", 1).connect(client).await.unwrap();
    tokio::task::yield_now().await;
    keys.replace([entry("bob", 2)]).unwrap();
    handle.allow(1);
    let error = response.await.unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Revoked), "{error}");
}

#[tokio::test]
async fn store_revokes_by_its_own_revoker() {
    let revoker = Revoker::new();
    let revocation = revoker.revocation();
    let store = KeyStore::new(move |_| {
        ready(Ok::<_, Infallible>([entry("alice", 1).with_revocation(revocation.clone())]))
    });
    let acceptor = Acceptor::new(mutual::Server::new(store, audience()));
    let (client, server) = duplex(256);
    let connector = connector("alice", 1);
    let (accepted, _client) = tokio::join!(acceptor.accept(server), connector.connect(client));
    let accepted = accepted.unwrap();
    let identity: &Identity = accepted.peer().identity();
    assert!(!identity.revocation().unwrap().is_revoked());
    revoker.revoke();
    timeout(LONG, accepted.revoked()).await.unwrap();
}

/// Half of the keys stay.
#[test]
fn large_ring_revokes_only_what_is_missing() {
    let entries = |from: u32| {
        (from..from + 20_000).map(|n| {
            KeyEntry::new(n.to_string(), Key::new([&[7; 28][..], &n.to_be_bytes()].concat()).unwrap())
                .unwrap()
        })
    };
    let keys: mutual::KeyRing = mutual::KeyRing::new(entries(0)).unwrap();
    let before = keys.snapshot();
    keys.replace(entries(10_000)).unwrap();
    let revoked = before.iter().filter(|key| key.identity().revocation().unwrap().is_revoked()).count();
    assert_eq!(revoked, 10_000);
}

/// Entries with a revocation of their own, as an application may keep them and pass them again.
#[tokio::test]
async fn ring_keeps_a_key_whose_entry_brings_the_same_revocation() {
    let revoker = Revoker::new();
    let alice = || entry("alice", 1).with_revocation(revoker.revocation());
    let keys = ring([alice(), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()));
    let (before, _client) = session(&acceptor, "alice", 1).await;
    keys.replace([alice()]).unwrap();
    let (after, _client) = session(&acceptor, "alice", 1).await;
    assert!(!is_revoked(&before) && !is_revoked(&after));

    // With another revocation, this is another grant of the same key.
    let other = Revoker::new();
    keys.replace([entry("alice", 1).with_revocation(other.revocation())]).unwrap();
    assert!(is_revoked(&before) && is_revoked(&after) && !other.revocation().is_revoked());

    let (last, _client) = session(&acceptor, "alice", 1).await;
    other.revoke();
    assert!(is_revoked(&last));
}

#[tokio::test]
async fn keys_of_a_store_without_revocations_cannot_be_revoked() {
    let store = KeyStore::new(|_| ready(Ok::<_, Infallible>([entry("alice", 1)])));
    let acceptor = Acceptor::new(mutual::Server::new(store, audience()));
    let (client, server) = duplex(256);
    let connector = connector("alice", 1);
    let (accepted, _client) = tokio::join!(acceptor.accept(server), connector.connect(client));
    assert!(accepted.unwrap().revocation().is_none());
}

/// A session that was not polled when its key was revoked gets no longer grace period for that.
#[tokio::test(start_paused = true)]
async fn grace_period_begins_at_the_revocation() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor = Acceptor::new(mutual::Server::new(keys.clone(), audience()))
        .end_revoked_sessions(Duration::from_secs(60));
    let (mut stream, _client) = session(&acceptor, "alice", 1).await;
    keys.replace([entry("bob", 2)]).unwrap();
    tokio::time::advance(Duration::from_secs(61)).await;
    let error = stream.write_all(b"late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn stream_from_parts_is_ended_too() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let acceptor =
        Acceptor::new(mutual::Server::new(keys.clone(), audience())).end_revoked_sessions(Duration::ZERO);
    let (stream, _client) = session(&acceptor, "alice", 1).await;
    let mut stream = Authenticated::from_parts(stream.into_parts());
    stream.write_all(b"before").await.unwrap();
    keys.replace([entry("bob", 2)]).unwrap();
    assert_eq!(stream.write_all(b"after").await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn incoming_does_not_return_a_connection_whose_key_was_revoked_while_it_waited() {
    let keys = ring([entry("alice", 1), entry("bob", 2)]);
    let layer = ChallengeLayer::new(mutual::Server::new(keys.clone(), audience()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut incoming = Incoming::builder(listener, layer).start().unwrap();
    let addr = *incoming.local_addr();
    let connect =
        async |id: &str, n| connector(id, n).connect(TcpStream::connect(addr).await.unwrap()).await.unwrap();
    let _alice = connect("alice", 1).await;
    // The accepting task hands the connections off in this order, since each client waits for its verdict.
    let _bob = connect("bob", 2).await;
    keys.replace([entry("bob", 2)]).unwrap();
    let first = timeout(LONG, incoming.accept()).await.unwrap().unwrap();
    assert_eq!(first.peer().identity().key_id(), &"bob");
}
