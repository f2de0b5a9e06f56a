//! The example `rpc`, over real sockets.

#[path = "../../examples/programs/rpc.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has a `main`")]
mod example;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use example::{Call, Client, MAX_CALLS, MAX_LEN, Reply, answer, handle};
use futures::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Notify, mpsc};
use tokio::time::timeout;
use tower::ServiceBuilder;
use tower_challenge::HandshakeErrorKind::{self, Refused};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, Connector, HandshakeError, Identity, Key,
    KeyEntry, RefusalReason, serve,
};

/// Longer than any step of these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn key() -> Key {
    Key::new("a key of sixteen bytes and more").unwrap()
}

fn audience() -> Audience {
    Audience::new("rpc").unwrap()
}

/// How a connection failed.
#[derive(Debug, PartialEq)]
enum Ended {
    Handshake(HandshakeErrorKind, Option<RefusalReason>),
    Session(io::ErrorKind),
}

struct Server {
    addr: SocketAddr,
    ended: mpsc::UnboundedReceiver<Ended>,
}

async fn server<F>(handler: impl Fn(Identity, Call) -> F + Clone + Send + Sync + 'static) -> Server
where
    F: Future<Output = Reply> + Send + 'static,
{
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    let service =
        ServiceBuilder::new().layer(ChallengeLayer::new(mutual::Server::new(keys, audience()))).service_fn(
            move |stream: Authenticated<Connection<TcpStream>, mutual::Peer>| answer(stream, handler.clone()),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (end, ended) = mpsc::unbounded_channel();
    let server = serve(listener, service).on_error(move |error| {
        let ServeError::Connection { error, .. } = error else { panic!("{error}") };
        let ended = match *error.downcast().expect("an error of the challenge") {
            AcceptError::Handshake(error) => Ended::Handshake(error.kind(), error.refusal_reason()),
            AcceptError::Service(error) => {
                Ended::Session(error.downcast::<io::Error>().expect("an error of the session").kind())
            }
            other => panic!("{other}"),
        };
        end.send(ended).unwrap();
    });
    tokio::spawn(server.into_future());
    Server { addr, ended }
}

async fn connect(addr: SocketAddr, key: &Key) -> Result<Client, HandshakeError> {
    let connector = Connector::new(mutual::Client::new("alice", key, audience()).unwrap());
    Ok(Client::new(connector.connect(TcpStream::connect(addr).await.unwrap()).await?))
}

fn reverse(text: &str) -> Call {
    Call::Reverse(text.to_owned())
}

#[tokio::test]
async fn calls_get_their_replies() {
    let server = server(handle).await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    let client = connect(server.addr, &key()).await.unwrap();
    assert_eq!(client.call(Call::WhoAmI).await.unwrap(), Ok("alice".to_owned()));
    assert_eq!(client.call(reverse("")).await.unwrap(), Err("nothing to reverse".to_owned()));
    let texts: Vec<_> = (0..1000).map(|number| format!("{number} calls")).collect();
    let replies = try_join_all(texts.iter().map(|text| client.call(reverse(text)))).await.unwrap();
    for (text, reply) in texts.iter().zip(replies) {
        assert_eq!(reply, Ok(text.chars().rev().collect()));
    }
}

/// The first call is answered after the second one, and each call gets its own reply.
#[tokio::test]
async fn replies_may_arrive_out_of_order() {
    let second = Arc::new(Notify::new());
    let server = server(move |_, call| {
        let second = Arc::clone(&second);
        async move {
            match call {
                Call::WhoAmI => second.notified().await,
                Call::Reverse(_) => second.notify_one(),
            }
            Ok(format!("{call:?}"))
        }
    })
    .await;
    let client = connect(server.addr, &key()).await.unwrap();
    let calls = async { tokio::join!(client.call(Call::WhoAmI), client.call(reverse("it"))) };
    let (first, second) = timeout(PATIENCE, calls).await.expect("neither call waits for the other");
    assert_eq!(first.unwrap(), Ok("WhoAmI".to_owned()));
    assert_eq!(second.unwrap(), Ok("Reverse(\"it\")".to_owned()));
}

#[tokio::test]
async fn concurrent_calls_are_limited() {
    let (active, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let all = Arc::new(Barrier::new(MAX_CALLS));
    let server = server({
        let most = Arc::clone(&most);
        move |_, _| {
            let (active, most, all) = (Arc::clone(&active), Arc::clone(&most), Arc::clone(&all));
            async move {
                most.fetch_max(active.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                all.wait().await;
                active.fetch_sub(1, Ordering::Relaxed);
                Ok(String::new())
            }
        }
    })
    .await;
    let client = connect(server.addr, &key()).await.unwrap();
    let calls = try_join_all((0..3 * MAX_CALLS).map(|_| client.call(Call::WhoAmI)));
    timeout(PATIENCE, calls).await.expect("as many calls as allowed run at the same time").unwrap();
    assert_eq!(most.load(Ordering::Relaxed), MAX_CALLS);
}

#[tokio::test]
async fn unauthenticated_peers_call_nothing() {
    let mut server = server(|_, _| async { panic!("called") }).await;
    let error = connect(server.addr, &Key::generate().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), Refused);
    assert_eq!(
        server.ended.recv().await,
        Some(Ended::Handshake(Refused, Some(RefusalReason::ProofMismatch)))
    );

    // A client of the same protocol without the handshake: its first two bytes are an empty proof.
    let mut peer = TcpStream::connect(server.addr).await.unwrap();
    peer.write_all(b"\0\0\0\x0c[0,\"WhoAmI\"]").await.unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert_eq!((received.len(), &received[35..]), (38, &b"\0\x01\0"[..]), "a challenge and a refusal");
    drop(peer);
    let reason = Some(RefusalReason::MalformedProof);
    assert_eq!(server.ended.recv().await, Some(Ended::Handshake(Refused, reason)));
}

#[tokio::test]
async fn calls_fail_when_their_connection_ends() {
    let (report, mut called) = mpsc::unbounded_channel();
    let mut server = server(move |_, call| {
        let report = report.clone();
        async move {
            if matches!(call, Call::WhoAmI) {
                report.send(()).unwrap();
                std::future::pending::<()>().await;
            }
            Ok(String::new())
        }
    })
    .await;
    let client = connect(server.addr, &key()).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(Call::WhoAmI).await }
    });
    called.recv().await.unwrap();
    // A message that is too long is not sent, and ends the session.
    let too_long = client.call(reverse(&"x".repeat(MAX_LEN))).await;
    assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), io::ErrorKind::NotConnected);
    let later = client.call(reverse("it")).await;
    assert_eq!(later.unwrap_err().kind(), io::ErrorKind::NotConnected);

    // Other sessions continue. A peer that sends an invalid call ends only its own session.
    let other = connect(server.addr, &key()).await.unwrap();
    let connector = Connector::new(mutual::Client::new("alice", &key(), audience()).unwrap());
    let mut raw = connector.connect(TcpStream::connect(server.addr).await.unwrap()).await.unwrap();
    raw.write_all(b"\0\0\0\x04nope").await.unwrap();
    assert_eq!(raw.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(server.ended.recv().await, Some(Ended::Session(io::ErrorKind::InvalidData)));
    for reply in join_all((0..3).map(|_| other.call(reverse("it")))).await {
        assert_eq!(reply.unwrap(), Ok(String::new()));
    }
}
