//! The server's side: limits, load shed, timeouts and buffers outside and inside the challenge.

use std::error::Error;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::{BoxError, ServiceBuilder};
use tower_challenge::HandshakeErrorKind::{ClosedEarly, Refused, ShuttingDown, TimedOut};
use tower_challenge::{AcceptError, ConnectError, Connection, Connector, Key};

use crate::example::{CONNECTIONS, Greeter, Stream, server_stack};
use crate::{
    Always, SHORT, assert_closed, challenge, client_of, greeted, hold, kind, leave, mechanism, peer, session,
    start, stranger,
};

/// What a layer inside the handshake has failed with, out of the `io::Error` that it was mapped to.
fn inside<E: Error + Send + Sync + 'static>(error: AcceptError<io::Error>) -> E {
    let AcceptError::Service(error) = error else { panic!("{error}") };
    error.downcast().expect("an error of this kind")
}

#[tokio::test]
async fn a_concurrency_limit_outside_is_held_by_strangers() {
    let service =
        ServiceBuilder::new().concurrency_limit(1).layer(challenge().timeout(SHORT)).service_fn(hold);
    let mut server = start(service).await;
    let _stranger = stranger(server.addr).await;
    let _session = session(server.addr).await;
    let error = server.error.try_recv().expect("the stranger's time was up before anybody else was let in");
    assert_eq!(kind(error.downcast_ref().unwrap()), TimedOut);
}

#[tokio::test]
async fn a_concurrency_limit_inside_is_held_by_sessions_alone() {
    let layer = challenge().ready_timeout(SHORT);
    let mut server = start(ServiceBuilder::new().layer(layer).concurrency_limit(1).service_fn(hold)).await;
    let _strangers = [stranger(server.addr).await, stranger(server.addr).await];
    let first = session(server.addr).await;
    // Accepted, and closed when no place has become free in time.
    assert_closed(peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::<io::Error>::NotReady));
    leave(first).await;
    session(server.addr).await;
}

#[tokio::test]
async fn load_shed_outside_a_limit_closes_before_any_handshake() {
    let service = ServiceBuilder::new().load_shed().concurrency_limit(1).layer(challenge()).service_fn(hold);
    let mut server = start(service).await;
    let _stranger = stranger(server.addr).await;
    assert_eq!(peer(server.addr).await.unwrap_err().kind(), ClosedEarly);
    server.failed::<Overloaded>().await;
}

#[tokio::test]
async fn load_shed_inside_closes_peers_that_have_proven_themselves() {
    let service = ServiceBuilder::new()
        .layer(challenge())
        .map_err(io::Error::other::<BoxError>)
        .load_shed()
        .concurrency_limit(1)
        .service_fn(hold);
    let mut server = start(service).await;
    let _stranger = stranger(server.addr).await;
    let _session = session(server.addr).await;
    assert_closed(peer(server.addr).await.unwrap()).await;
    inside::<Overloaded>(server.failed().await);
}

#[tokio::test]
async fn load_shed_outside_sheds_nothing_of_what_is_limited_inside() {
    let layer = challenge().ready_timeout(SHORT);
    let service = ServiceBuilder::new().load_shed().layer(layer).concurrency_limit(1).service_fn(hold);
    let mut server = start(service).await;
    let _session = session(server.addr).await;
    assert_closed(peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::<io::Error>::NotReady));
}

#[tokio::test]
async fn a_timeout_outside_bounds_handshake_and_session_together() {
    let mut server = start(ServiceBuilder::new().timeout(SHORT).layer(challenge()).service_fn(hold)).await;
    assert_closed(stranger(server.addr).await).await;
    server.failed::<Elapsed>().await;
    assert_closed(session(server.addr).await).await;
    server.failed::<Elapsed>().await;
}

#[tokio::test]
async fn a_timeout_inside_bounds_the_session_and_not_the_wait_for_it() {
    let service = ServiceBuilder::new()
        .layer(challenge())
        .map_err(io::Error::other::<BoxError>)
        .concurrency_limit(1)
        .timeout(SHORT)
        .service_fn(hold);
    let mut server = start(service).await;
    let begin = Instant::now();
    let mut stranger = stranger(server.addr).await;
    let first = session(server.addr).await;
    let second = session(server.addr).await;
    assert_closed(first).await;
    assert_closed(second).await;
    assert!(begin.elapsed() >= 2 * SHORT, "each has all of its time");
    for _ in 0..2 {
        inside::<Elapsed>(server.failed().await);
    }
    // The stranger's handshake is not over yet: an empty proof is refused in its words.
    stranger.write_all(b"\0\0").await.unwrap();
    let mut refusal = [0; 3];
    stranger.read_exact(&mut refusal).await.unwrap();
    assert_eq!(&refusal, b"\0\x01\0");
}

#[tokio::test]
async fn the_challenge_s_own_timeout_bounds_the_handshake_alone() {
    let mut server = start(ServiceBuilder::new().layer(challenge().timeout(SHORT)).service_fn(hold)).await;
    let session = session(server.addr).await;
    assert_closed(stranger(server.addr).await).await;
    assert_eq!(kind(&server.failed().await), TimedOut);
    // It is older than the stranger's handshake, whose time is up.
    leave(session).await;
}

#[tokio::test]
async fn a_buffer_outside_bounds_nothing() {
    let server = start(ServiceBuilder::new().buffer(1).layer(challenge()).service_fn(hold)).await;
    let mut strangers = Vec::new();
    for _ in 0..10 {
        strangers.push(stranger(server.addr).await);
    }
    session(server.addr).await;
}

#[tokio::test]
async fn in_a_buffer_inside_peers_wait_beyond_the_ready_timeout() {
    let service = ServiceBuilder::new()
        .layer(challenge().ready_timeout(SHORT))
        .map_err(io::Error::other::<BoxError>)
        .buffer(1)
        .concurrency_limit(1)
        .service_fn(hold);
    let mut server = start(service).await;
    let first = session(server.addr).await;
    // One is with the buffer's worker, one is in the buffer, and for one there is no place.
    let (second, third) = (peer(server.addr).await.unwrap(), peer(server.addr).await.unwrap());
    assert_closed(peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::<io::Error>::NotReady));
    // Those before it have waited even longer.
    leave(first).await;
    leave(greeted(second).await).await;
    leave(greeted(third).await).await;
}

#[tokio::test]
async fn nothing_is_retried_on_a_stream() {
    // All that a policy can say of a request that can't be cloned.
    static_assertions::assert_not_impl_any!(Connection<TcpStream>: Clone);
    static_assertions::assert_not_impl_any!(Stream: Clone);
    let calls = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new()
        .layer(challenge())
        .retry(Always { left: 9, clone: |_: &Stream| None })
        .service_fn({
            let calls = Arc::clone(&calls);
            move |_: Stream| {
                calls.fetch_add(1, Ordering::Relaxed);
                ready(Err::<(), _>(io::Error::other("broken")))
            }
        });
    let mut server = start(service).await;
    assert_closed(peer(server.addr).await.unwrap()).await;
    assert!(matches!(server.failed().await, AcceptError::<io::Error>::Service(_)));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

/// Why what is inside has its boxed error mapped to another.
#[test]
fn with_a_boxed_error_inside_ours_is_no_error() {
    static_assertions::assert_not_impl_any!(AcceptError<BoxError>: Error);
    static_assertions::assert_not_impl_any!(ConnectError<BoxError>: Error);
    static_assertions::assert_impl_all!(AcceptError<io::Error>: Error);
    static_assertions::assert_impl_all!(ConnectError<io::Error>: Error);
}

#[tokio::test]
async fn the_example_s_server() {
    // One greeter for all, that counts: the buffer's.
    static_assertions::assert_not_impl_any!(Greeter: Clone);
    let mut server = start(server_stack(mechanism())).await;
    for number in 1..=2 {
        let mut heard = String::new();
        peer(server.addr).await.unwrap().read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, format!("hello alice, you are number {number}"));
    }
    let wrong = client_of(&Key::generate().unwrap());
    let refused = Connector::new(wrong).connect(TcpStream::connect(server.addr).await.unwrap()).await;
    assert_eq!(refused.unwrap_err().kind(), Refused);
    assert_eq!(kind(&server.failed().await), Refused);

    let mut strangers = Vec::new();
    for _ in 0..CONNECTIONS {
        strangers.push(stranger(server.addr).await);
    }
    assert_closed(TcpStream::connect(server.addr).await.unwrap()).await;
    server.failed::<Overloaded>().await;
    // The word that it is time to shut down gets through all layers: nobody waits for a deadline.
    server.stop.send(()).unwrap();
    for stranger in strangers {
        assert_closed(stranger).await;
        let error = *server.error.recv().await.unwrap().downcast().unwrap();
        assert_eq!(kind(&error), ShuttingDown);
    }
}
