//! A handshake that is dropped at any await releases its stream, its task and its keys.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(feature = "mutual")]
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tower::{Layer as _, Service as _, service_fn};
use tower_challenge::{AnswerLayer, Authenticated, ChallengeLayer, Connector, Identity, KeyEntry, one_way};

use crate::support::{Watched, acceptor, connector, hmac_md5, key, polled_in_turn};

type Stream = Authenticated<Watched<tokio::io::DuplexStream>, Identity<Arc<()>>>;

/// Polls both sides in turn over a pipe of one byte, and drops both after `steps` polls. Returns whether both had
/// completed.
fn dropped_after(steps: usize, client_key: &str) -> bool {
    // The metadata of a key lives as long as the key is referenced.
    let (metadata, alive) = (Arc::new(()), Arc::new(()));
    let watch = |io| Watched { io, alive: Arc::clone(&alive) };
    let (client, server) = duplex(1);
    let done = {
        let entry = KeyEntry::new("k", key("right")).unwrap().with_metadata(Arc::clone(&metadata));
        let ring = one_way::KeyRing::new([entry]).unwrap();
        let mut service = ChallengeLayer::new(one_way::Server::new(ring))
            .layer(service_fn(async |_: Stream| Ok::<_, io::Error>(())));
        let mut answer = AnswerLayer::new(one_way::Client::new(&key(client_key)))
            .layer(service_fn(async |io: Watched<_>| Ok::<_, io::Error>(io)));
        polled_in_turn(answer.call(watch(client)), service.call(watch(server)), steps)
    };
    assert_eq!(Arc::strong_count(&alive), 1, "a stream is not dropped after {steps} steps");
    assert_eq!(Arc::strong_count(&metadata), 1, "a key is not dropped after {steps} steps");
    done
}

#[test]
fn dropping_a_handshake_at_any_await_releases_everything() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Entered, and not blocked on: polls in a loop that never yields would use up the budget of a task.
    let _entered = runtime.enter();
    for client_key in ["right", "wrong"] {
        let steps =
            (0..500).find(|&steps| dropped_after(steps, client_key)).expect("the handshake completes");
        assert!(steps > 100, "{steps} runs, each of which ends at another await");
    }
}

/// The stream is closed when the future completes, not when the future is dropped.
#[tokio::test]
async fn failure_releases_the_stream_before_drop() {
    let alive = Arc::new(());
    let (mut client, server) = duplex(64);
    let mut accept = pin!(acceptor(&["key"]).accept(Watched { io: server, alive: Arc::clone(&alive) }));
    client.write_all(&hmac_md5(b"wrong", &[0; 32])).await.unwrap();
    client.shutdown().await.unwrap();
    accept.as_mut().await.unwrap_err();
    assert_eq!(Arc::strong_count(&alive), 1);
    client.read_to_end(&mut Vec::new()).await.unwrap();

    let (client, server) = duplex(64);
    drop(server);
    let mut connect =
        pin!(Connector::connect(&connector("key"), Watched { io: client, alive: Arc::clone(&alive) }));
    connect.as_mut().await.unwrap_err();
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// Also at the deadline of the handshake, and at the one for an inner service that is never ready.
#[tokio::test(start_paused = true)]
async fn timeout_releases_the_stream_before_drop() {
    #[derive(Clone)]
    struct NeverReady;

    impl tower::Service<Stream> for NeverReady {
        type Response = ();
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<()>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn call(&mut self, _: Stream) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let alive = Arc::new(());
    for answers in [false, true] {
        let entry = KeyEntry::new("k", key("right")).unwrap().with_metadata(Arc::new(()));
        let ring = one_way::KeyRing::new([entry]).unwrap();
        let mut service = ChallengeLayer::new(one_way::Server::new(ring)).layer(NeverReady);
        let (mut client, server) = duplex(64);
        let mut response = pin!(service.call(Watched { io: server, alive: Arc::clone(&alive) }));
        if answers {
            let connect = connector("right").connect(client);
            let (outcome, _client) = tokio::join!(response.as_mut(), connect);
            assert!(matches!(outcome.unwrap_err(), tower_challenge::AcceptError::NotReady));
        } else {
            response.as_mut().await.unwrap_err();
            assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 32);
        }
        assert_eq!(Arc::strong_count(&alive), 1, "the stream is dropped before the response");
    }
}

#[cfg(feature = "mutual")]
#[tokio::test(start_paused = true)]
async fn timeout_drops_a_pending_lookup_before_drop() {
    use tower_challenge::mutual::{Audience, Client, Server};
    use tower_challenge::{Acceptor, KeyStore};

    let alive = Arc::new(());
    let watched = Arc::clone(&alive);
    let store = KeyStore::new(move |_| {
        let alive = Arc::clone(&watched);
        async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            drop(alive);
            Ok::<Vec<KeyEntry>, io::Error>(Vec::new())
        }
    });
    let audience = Audience::unspecified();
    let client = Client::new("k", &key("0123456789abcdef"), audience.clone()).unwrap();
    let (client_io, server_io) = duplex(64);
    let mut accept = pin!(Acceptor::new(Server::new(store, audience)).accept(server_io));
    let connect = Connector::new(client);
    let (outcome, _) = tokio::join!(accept.as_mut(), connect.connect(client_io));
    assert_eq!(outcome.unwrap_err().kind(), tower_challenge::HandshakeErrorKind::KeySource);
    assert_eq!(Arc::strong_count(&alive), 1, "the lookup and the store are dropped");
}
