//! The client's side: retry, timeout, limit and buffer around the connector.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower::load_shed::error::Overloaded;
use tower::retry::RetryLayer;
use tower::timeout::error::Elapsed;
use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_challenge::HandshakeErrorKind::{Refused, TimedOut, UnexpectedEof};
use tower_challenge::mutual::Client;
use tower_challenge::{AcceptError, AnswerLayer, BoxError, ConnectError, Connection, Connector, Key, serve};

use super::example::{Reconnect, client_stack, server_stack};
use super::{RetryAll, SHORT, challenge, client_of, connector, greeted, hold, kind, leave, mechanism, start};

fn answer() -> AnswerLayer<Connector<Client>> {
    AnswerLayer::from_connector(connector())
}

/// Starts a server that closes its first `breaks` connections and serves the following ones.
async fn start_late<S>(breaks: usize, service: S) -> (SocketAddr, Arc<AtomicUsize>)
where
    S: Service<Connection<TcpStream>, Error: Into<BoxError> + Send, Future: Send> + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        for _ in 0..breaks {
            drop(listener.accept().await);
            counted.fetch_add(1, Ordering::Relaxed);
        }
        let service = service.map_request(move |connection: Connection<TcpStream>| {
            counted.fetch_add(1, Ordering::Relaxed);
            connection
        });
        serve(listener, service).await.map(drop)
    });
    (addr, connections)
}

/// Starts a server that accepts connections and sends nothing.
async fn start_silent() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (accepted, connections) = mpsc::unbounded_channel();
    tokio::spawn(async move { while accepted.send(listener.accept().await.unwrap().0).is_ok() {} });
    (addr, connections)
}

fn served() -> impl Service<
    Connection<TcpStream>,
    Response = (),
    Error = AcceptError,
    Future = impl Future<Output = Result<(), AcceptError>> + Send,
> + Clone
+ Send
+ 'static {
    ServiceBuilder::new().layer(challenge()).service(service_fn(hold))
}

#[tokio::test]
async fn retry_outside_repeats_connection_and_handshake() {
    let (addr, connections) = start_late(2, served()).await;
    let stack = ServiceBuilder::new()
        .retry(Reconnect::up_to(3))
        .layer(answer())
        .service_fn(TcpStream::connect::<SocketAddr>);
    greeted(stack.clone().oneshot(addr).await.unwrap()).await;
    assert_eq!(connections.load(Ordering::Relaxed), 3);

    // At most as often as the policy allows.
    let (addr, connections) = start_late(9, served()).await;
    let error = stack.oneshot(addr).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(error) if error.kind() == UnexpectedEof));
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn refused_handshake_is_not_retried() {
    let mut server = start(server_stack(mechanism())).await;
    let error = client_stack(client_of(&Key::generate().unwrap())).oneshot(server.addr).await.unwrap_err();
    let error: &ConnectError = error.downcast_ref().unwrap();
    assert!(matches!(error, ConnectError::Handshake(error) if error.kind() == Refused));
    assert_eq!(kind(&server.failed().await), Refused);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn retry_inside_repeats_only_the_connection() {
    let (addr, connections) = start_late(1, served()).await;
    let stack = ServiceBuilder::new()
        .layer(answer())
        .retry(RetryAll { left: 9, clone: |addr: &SocketAddr| Some(*addr) })
        .service_fn(TcpStream::connect::<SocketAddr>);
    let error = stack.oneshot(addr).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(error) if error.kind() == UnexpectedEof));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn timeout_bounds_attempts_by_its_position() {
    let (addr, _connections) = start_silent().await;
    let attempts = AtomicUsize::new(0);
    let connect = service_fn(|addr: SocketAddr| {
        attempts.fetch_add(1, Ordering::Relaxed);
        TcpStream::connect(addr)
    });
    let retry = |left| RetryLayer::new(RetryAll { left, clone: |addr: &SocketAddr| Some(*addr) });
    let answer_within = |time| AnswerLayer::from_connector(connector().timeout(time));

    // Outside of the retry: all attempts together.
    let outside = ServiceBuilder::new()
        .timeout(5 * SHORT)
        .layer(retry(usize::MAX))
        .layer(answer_within(SHORT / 10))
        .service(connect);
    assert!(outside.oneshot(addr).await.unwrap_err().is::<Elapsed>());
    assert!(attempts.swap(0, Ordering::Relaxed) > 1);

    // Between retry and handshake: each attempt.
    let between = ServiceBuilder::new().layer(retry(2)).timeout(SHORT).layer(answer()).service(connect);
    assert!(between.oneshot(addr).await.unwrap_err().is::<Elapsed>());
    assert_eq!(attempts.load(Ordering::Relaxed), 3);

    // Inside: only the connection, not the handshake.
    let inside = ServiceBuilder::new().layer(answer_within(2 * SHORT)).timeout(SHORT).service(connect);
    let error = inside.oneshot(addr).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(error) if error.kind() == TimedOut));
}

#[tokio::test]
async fn timeout_does_not_bound_session() {
    let (silent, _connections) = start_silent().await;
    let server = start(served()).await;
    let stack =
        ServiceBuilder::new().timeout(SHORT).layer(answer()).service_fn(TcpStream::connect::<SocketAddr>);
    let session = greeted(stack.clone().oneshot(server.addr).await.unwrap()).await;
    assert!(stack.oneshot(silent).await.unwrap_err().is::<Elapsed>());
    // The session is older than the attempt that timed out.
    leave(session).await;
}

#[tokio::test]
async fn concurrency_limit_bounds_attempts_and_not_sessions() {
    let (silent, mut connections) = start_silent().await;
    let server = start(served()).await;
    let stack = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .layer(answer())
        .service_fn(TcpStream::connect::<SocketAddr>);

    let in_flight = tokio::spawn(stack.clone().oneshot(silent));
    connections.recv().await.unwrap();
    assert!(stack.clone().oneshot(server.addr).await.unwrap_err().is::<Overloaded>());
    in_flight.abort();
    assert!(in_flight.await.unwrap_err().is_cancelled());

    let first = stack.clone().oneshot(server.addr).await.unwrap();
    let second = stack.oneshot(server.addr).await.unwrap();
    tokio::join!(greeted(first), greeted(second));
}

#[tokio::test]
async fn buffer_shares_connector_without_clone() {
    /// Makes this many connections.
    struct UpTo(usize);

    impl Service<SocketAddr> for UpTo {
        type Response = TcpStream;
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(if self.0 > 0 { Ok(()) } else { Err(io::Error::other("no more")) })
        }

        fn call(&mut self, addr: SocketAddr) -> Self::Future {
            self.0 -= 1;
            Box::pin(TcpStream::connect(addr))
        }
    }

    static_assertions::assert_not_impl_any!(UpTo: Clone);
    let server = start(served()).await;
    let stack = ServiceBuilder::new().buffer(2).layer(answer()).service(UpTo(2));
    let (first, second) =
        tokio::join!(stack.clone().oneshot(server.addr), stack.clone().oneshot(server.addr));
    tokio::join!(greeted(first.unwrap()), greeted(second.unwrap()));
    let error = stack.oneshot(server.addr).await.unwrap_err();
    assert!(error.to_string().ends_with("no more"), "all share one connector: {error}");
}
