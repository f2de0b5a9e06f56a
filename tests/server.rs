//! The server's layer: when the inner service is polled for readiness, called, and waited for.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::{AcceptError, Authenticated, ChallengeLayer, HandshakeErrorKind, Identity, one_way};

use crate::support::{ACCEPTED, answer_by_hand, connector, read_verdict, ring};

type Stream = Authenticated<DuplexStream, Identity>;

fn layer() -> ChallengeLayer<one_way::Server> {
    ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
}

/// When the mock becomes ready, it wakes the task that polled it before. A task that is not woken has not polled it.
#[tokio::test]
async fn inner_service_is_neither_polled_nor_called_before_the_handshake_completes() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<Stream, &str, _>(layer());
    handle.allow(0);
    // Ready although the inner service is not.
    assert_ready_ok!(service.poll_ready());

    let (mut client, server) = duplex(64);
    let mut response = tokio_test::task::spawn(service.call(server));
    assert_pending!(response.poll());
    handle.allow(1);
    assert!(!response.is_woken());
    handle.allow(0);
    let mut request = tokio_test::task::spawn(handle.next_request());
    assert_pending!(request.poll());

    answer_by_hand(&mut client, "key").await;
    // The peer is accepted and reads the verdict while the inner service is not ready.
    assert_pending!(response.poll());
    assert_eq!(read_verdict(&mut client).await, ACCEPTED);
    assert_pending!(request.poll());
    drop(request);

    handle.allow(1);
    assert!(response.is_woken());
    assert_pending!(response.poll());
    let (stream, respond) = handle.next_request().await.unwrap();
    assert_eq!(stream.peer().key_id(), &"key");
    respond.send_response("served");
    assert!(response.is_woken());
    assert_eq!(assert_ready_ok!(response.poll()), "served");
}

#[tokio::test]
async fn inner_service_is_not_called_for_a_refused_peer() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<Stream, &str, _>(layer());
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let (mut client, server) = duplex(64);
    let response = tokio::spawn(service.call(server));
    answer_by_hand(&mut client, "wrong").await;
    drop(client);
    let error = response.await.unwrap().unwrap_err();
    assert!(matches!(&error, AcceptError::Handshake(e) if e.kind() == HandshakeErrorKind::Refused));
    let mut request = tokio_test::task::spawn(handle.next_request());
    assert_pending!(request.poll());
}

#[tokio::test(start_paused = true)]
async fn ready_timeout_closes_the_connection() {
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Stream, &str, _>(layer().ready_timeout(Duration::from_secs(4)));
    handle.allow(0);
    assert_ready_ok!(service.poll_ready());
    let (client, server) = duplex(64);
    let response = tokio::spawn(service.call(server));
    let mut client = connector("key").connect(client).await.unwrap();
    let begin = Instant::now();
    assert!(matches!(response.await.unwrap().unwrap_err(), AcceptError::NotReady));
    assert_eq!(begin.elapsed(), Duration::from_secs(4));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed");
}

#[tokio::test]
async fn error_of_the_response_is_service() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<Stream, &str, _>(layer());
    assert_ready_ok!(service.poll_ready());
    let (client, server) = duplex(64);
    let response = tokio::spawn(service.call(server));
    connector("key").connect(client).await.unwrap();
    handle.next_request().await.unwrap().1.send_error("broken");
    let error = response.await.unwrap().unwrap_err();
    assert!(matches!(&error, AcceptError::Service(e) if e.to_string() == "broken"));
}

#[tokio::test]
async fn error_of_poll_ready_is_service() {
    #[derive(Clone)]
    struct Broken;

    impl tower::Service<Stream> for Broken {
        type Response = ();
        type Error = std::io::Error;
        type Future = std::future::Ready<Result<(), std::io::Error>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Err(std::io::Error::other("broken")))
        }

        fn call(&mut self, _: Stream) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let (client, server) = duplex(64);
    let service = ServiceBuilder::new().layer(layer()).service(Broken);
    let (response, _client) = tokio::join!(service.oneshot(server), connector("key").connect(client));
    let error = response.unwrap_err();
    assert!(matches!(error, AcceptError::Service(_)));
    assert_eq!(error.to_string(), "broken", "`Display` shows the cause");
}

/// An outer timeout limits handshake and session together, the timeout of the layer the handshake only.
#[tokio::test(start_paused = true)]
async fn works_in_a_stack_of_tower_layers() {
    let service = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(8)
        .timeout(Duration::from_secs(60))
        .layer(layer().timeout(Duration::from_secs(2)))
        .concurrency_limit(1)
        .service_fn(|mut stream: Stream| async move {
            stream.write_all(b"one moment").await?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            stream.write_all(b", please").await
        });

    let (_silent, server) = duplex(64);
    let begin = Instant::now();
    let error = service.clone().oneshot(server).await.unwrap_err();
    assert_eq!(begin.elapsed(), Duration::from_secs(2));
    assert!(error.to_string().contains("timed out"), "{error}");

    let (client, server) = duplex(64);
    let session = tokio::spawn(service.oneshot(server));
    let mut received = String::new();
    connector("key").connect(client).await.unwrap().read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "one moment, please");
    session.await.unwrap().unwrap();
}

#[test]
fn layer_is_clone_send_and_sync_and_returns_the_inner_service() {
    static_assertions::assert_impl_all!(ChallengeLayer<one_way::Server>: Clone, Send, Sync);
    use tower::Layer as _;
    let mut service = layer().layer(7);
    *service.get_mut() += 1;
    assert_eq!(*service.get_ref(), 8);
    assert_eq!(service.into_inner(), 8);
}
