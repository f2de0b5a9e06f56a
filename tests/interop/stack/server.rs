//! The server's side: concurrency limit, load shed, timeout and buffer outside and inside the handshake.

use std::error::Error;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower::ServiceBuilder;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower_challenge::HandshakeErrorKind::{Refused, ShuttingDown, TimedOut, UnexpectedEof};
use tower_challenge::{AcceptError, Connection, Connector, Key};

use super::example::{CONNECTIONS, Greeter, Stream, server_stack};
use super::{
    RetryAll, SHORT, assert_closed, authenticated_peer, challenge, client_of, greeted, hold, kind, leave,
    mechanism, session, silent_peer, start,
};

/// Returns the error of a layer inside the handshake.
fn inside<E: Error + 'static>(error: AcceptError) -> E {
    let AcceptError::Service(error) = error else { panic!("{error}") };
    *error.downcast().expect("an error of this type")
}

#[tokio::test]
async fn concurrency_limit_outside_counts_handshakes() {
    let service =
        ServiceBuilder::new().concurrency_limit(1).layer(challenge().timeout(SHORT)).service_fn(hold);
    let mut server = start(service).await;
    let start_of_silence = Instant::now();
    let _silent = silent_peer(server.addr).await;
    let _session = session(server.addr).await;
    assert!(start_of_silence.elapsed() >= SHORT, "the session waits until the silent peer has timed out");
    assert_eq!(kind(&server.failed().await), TimedOut);
}

#[tokio::test]
async fn concurrency_limit_inside_counts_only_sessions() {
    let layer = challenge().ready_timeout(SHORT);
    let mut server = start(ServiceBuilder::new().layer(layer).concurrency_limit(1).service_fn(hold)).await;
    let _silent = [silent_peer(server.addr).await, silent_peer(server.addr).await];
    let first = session(server.addr).await;
    // Authenticated, and closed because no session ended in time.
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::NotReady));
    leave(first).await;
    session(server.addr).await;
}

#[tokio::test]
async fn load_shed_outside_closes_before_handshake() {
    let service = ServiceBuilder::new().load_shed().concurrency_limit(1).layer(challenge()).service_fn(hold);
    let mut server = start(service).await;
    let _silent = silent_peer(server.addr).await;
    assert_eq!(authenticated_peer(server.addr).await.unwrap_err().kind(), UnexpectedEof);
    server.failed::<Overloaded>().await;
}

#[tokio::test]
async fn load_shed_inside_closes_after_handshake() {
    let service = ServiceBuilder::new().layer(challenge()).load_shed().concurrency_limit(1).service_fn(hold);
    let mut server = start(service).await;
    let _silent = silent_peer(server.addr).await;
    let _session = session(server.addr).await;
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    inside::<Overloaded>(server.failed().await);
}

#[tokio::test]
async fn load_shed_outside_does_not_see_limit_inside() {
    let layer = challenge().ready_timeout(SHORT);
    let service = ServiceBuilder::new().load_shed().layer(layer).concurrency_limit(1).service_fn(hold);
    let mut server = start(service).await;
    let _session = session(server.addr).await;
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::NotReady));
}

#[tokio::test]
async fn timeout_outside_bounds_handshake_and_session() {
    let mut server = start(ServiceBuilder::new().timeout(SHORT).layer(challenge()).service_fn(hold)).await;
    assert_closed(silent_peer(server.addr).await).await;
    server.failed::<Elapsed>().await;
    assert_closed(session(server.addr).await).await;
    server.failed::<Elapsed>().await;
}

#[tokio::test]
async fn timeout_inside_bounds_session_and_not_the_wait_for_it() {
    let service =
        ServiceBuilder::new().layer(challenge()).concurrency_limit(1).timeout(SHORT).service_fn(hold);
    let mut server = start(service).await;
    let begin = Instant::now();
    let mut silent = silent_peer(server.addr).await;
    let first = session(server.addr).await;
    let second = session(server.addr).await;
    assert_closed(first).await;
    assert_closed(second).await;
    assert!(begin.elapsed() >= 2 * SHORT, "each session gets the whole timeout");
    for _ in 0..2 {
        inside::<Elapsed>(server.failed().await);
    }
    // The handshake of the silent peer is still in flight: an empty proof is refused.
    silent.write_all(b"\0\0").await.unwrap();
    let mut refusal = [0; 3];
    silent.read_exact(&mut refusal).await.unwrap();
    assert_eq!(&refusal, b"\0\x01\0");
}

#[tokio::test]
async fn challenge_timeout_bounds_only_handshake() {
    let mut server = start(ServiceBuilder::new().layer(challenge().timeout(SHORT)).service_fn(hold)).await;
    let session = session(server.addr).await;
    assert_closed(silent_peer(server.addr).await).await;
    assert_eq!(kind(&server.failed().await), TimedOut);
    // The session is older than the handshake that timed out.
    leave(session).await;
}

#[tokio::test]
async fn buffer_outside_bounds_nothing() {
    let server = start(ServiceBuilder::new().buffer(1).layer(challenge()).service_fn(hold)).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(silent_peer(server.addr).await);
    }
    session(server.addr).await;
}

#[tokio::test]
async fn peers_in_buffer_inside_outlast_ready_timeout() {
    let service = ServiceBuilder::new()
        .layer(challenge().ready_timeout(SHORT))
        .buffer(1)
        .concurrency_limit(1)
        .service_fn(hold);
    let mut server = start(service).await;
    let first = session(server.addr).await;
    // One connection is with the buffer's worker, one is in the buffer, and the third one finds it full.
    let (second, third) =
        (authenticated_peer(server.addr).await.unwrap(), authenticated_peer(server.addr).await.unwrap());
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::NotReady));
    // The two before it waited even longer.
    leave(first).await;
    leave(greeted(second).await).await;
    leave(greeted(third).await).await;
}

#[tokio::test]
async fn stream_is_never_retried() {
    // Streams cannot be cloned, so a policy cannot return a request to retry.
    static_assertions::assert_not_impl_any!(Connection<TcpStream>: Clone);
    static_assertions::assert_not_impl_any!(Stream: Clone);
    let calls = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new()
        .layer(challenge())
        .retry(RetryAll { left: 9, clone: |_: &Stream| None })
        .service_fn({
            let calls = Arc::clone(&calls);
            move |_: Stream| {
                calls.fetch_add(1, Ordering::Relaxed);
                ready(Err::<(), _>(io::Error::other("broken")))
            }
        });
    let mut server = start(service).await;
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::Service(_)));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn server_of_the_example() {
    // All sessions share the one greeter of the buffer, which counts them.
    static_assertions::assert_not_impl_any!(Greeter: Clone);
    let mut server = start(server_stack(mechanism())).await;
    for number in 1..=2 {
        let mut received = String::new();
        authenticated_peer(server.addr).await.unwrap().read_to_string(&mut received).await.unwrap();
        assert_eq!(received, format!("hello alice, you are number {number}"));
    }
    let wrong = client_of(&Key::generate().unwrap());
    let refused = Connector::new(wrong).connect(TcpStream::connect(server.addr).await.unwrap()).await;
    assert_eq!(refused.unwrap_err().kind(), Refused);
    assert_eq!(kind(&server.failed().await), Refused);

    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(silent_peer(server.addr).await);
    }
    assert_closed(TcpStream::connect(server.addr).await.unwrap()).await;
    server.failed::<Overloaded>().await;
    // The shutdown signal passes through all layers, so that no handshake waits for its deadline.
    server.stop.send(()).unwrap();
    for peer in silent {
        assert_closed(peer).await;
        let error = *server.error.recv().await.unwrap().downcast().unwrap();
        assert_eq!(kind(&error), ShuttingDown);
    }
}
