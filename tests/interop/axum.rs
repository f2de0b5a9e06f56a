//! `axum::serve` with an `Incoming` as its listener, and real HTTP clients.

use std::any::type_name;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::MockConnectInfo;
use axum::extract::{ConnectInfo, State};
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream, unix};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;
use tower_challenge::{ChallengeLayer, HandshakeErrorKind, Identity, Incoming, PeerInfo, mutual, one_way};

use crate::support::{REFUSED, answer_by_hand, connector, read_verdict, ring};
use crate::{process, unauthenticated};

static_assertions::assert_impl_all!(Incoming<UnixStream, Identity, unix::SocketAddr>: axum::serve::Listener);

struct Server {
    addr: SocketAddr,
    /// How many requests reached the handler.
    handled: Arc<AtomicUsize>,
    errors: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<std::io::Result<()>>,
}

async fn server() -> Server {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice", "bob"])));
    let (report, errors) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(move |error| report.send(error.to_string()).unwrap())
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    let handled = Arc::default();
    let app = Router::new()
        .route("/", get(greet))
        .route("/wrong-peer", get(expects_wrong_peer))
        .route("/wrong-metadata", get(expects_wrong_metadata))
        .with_state(Arc::clone(&handled));
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = axum::serve(incoming, app.into_make_service_with_connect_info::<PeerInfo<Identity>>())
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    assert_eq!(serve.local_addr().unwrap(), addr);
    Server { addr, handled, errors, stop, running: tokio::spawn(serve.into_future()) }
}

async fn greet(
    State(handled): State<Arc<AtomicUsize>>,
    PeerInfo { peer, addr, .. }: PeerInfo<Identity>,
    ConnectInfo(same): ConnectInfo<PeerInfo<Identity>>,
) -> String {
    assert_eq!((same.addr, same.peer.key_id()), (addr, peer.key_id()));
    handled.fetch_add(1, Ordering::Relaxed);
    format!("hello {} from {addr}", peer.key_id())
}

/// Expects the peer of another mechanism than the server's.
async fn expects_wrong_peer(_: PeerInfo<mutual::Peer>) {
    unreachable!("the extractor rejects the request");
}

/// Expects metadata that the server's keys do not have.
async fn expects_wrong_metadata(_: PeerInfo<Identity<u64>>) {
    unreachable!("the extractor rejects the request");
}

/// Connects an HTTP client with this key, and returns the address that it connects from.
async fn http_client(addr: SocketAddr, key: &str) -> (SendRequest<Body>, SocketAddr) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let from = stream.local_addr().unwrap();
    (http_over(connector(key).connect(stream).await.unwrap()).await, from)
}

async fn http_over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Body> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> Request<Body> {
    Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap()
}

async fn text<B>(response: Response<B>) -> String
where
    B: hyper::body::Body<Error: std::fmt::Debug>,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn greeting(sender: &mut SendRequest<Body>) -> String {
    sender.ready().await.unwrap();
    let response = sender.send_request(request("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await
}

#[tokio::test]
async fn handlers_receive_peer_and_address() {
    let server = server().await;
    let (mut alice, alice_addr) = http_client(server.addr, "alice").await;
    let (mut bob, bob_addr) = http_client(server.addr, "bob").await;
    for _ in 0..2 {
        assert_eq!(greeting(&mut alice).await, format!("hello alice from {alice_addr}"));
        assert_eq!(greeting(&mut bob).await, format!("hello bob from {bob_addr}"));
    }
}

#[tokio::test]
async fn wrong_key_reaches_no_handler() {
    let mut server = server().await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let from = stream.local_addr().unwrap();
    let refused = connector("carol").connect(stream).await.unwrap_err();
    assert_eq!(refused.kind(), HandshakeErrorKind::Refused);
    assert_eq!(
        server.errors.recv().await.unwrap(),
        format!("connection from {from}: handshake refused: the answer matches none of the keys")
    );
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

/// An HTTP client without the handshake reads a challenge where it expects a response. The server takes the beginning
/// of the request for a wrong answer.
#[tokio::test]
async fn http_without_handshake_reaches_no_handler() {
    let mut server = server().await;
    unauthenticated::assert_refused(server.addr, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let error = server.errors.recv().await.unwrap();
    assert!(
        error.ends_with(": handshake refused: the peer speaks HTTP, this side `one_way`"),
        "the log names the protocol: {error}"
    );

    let mut client = http_over(TcpStream::connect(server.addr).await.unwrap()).await;
    client.send_request(request("/")).await.unwrap_err();
    server.errors.recv().await.unwrap();
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

#[test]
#[ignore = "needs curl"]
fn curl_reaches_no_handler() {
    let runtime = Runtime::new().unwrap();
    let mut server = runtime.block_on(server());
    let url = format!("http://{}/", server.addr);
    let curl =
        Command::new("curl").args(["--silent", "--max-time", "20", &url]).stderr(Stdio::inherit()).output();
    let curl = curl.expect("curl is installed");
    assert_eq!((curl.status.code(), &*curl.stdout), (Some(1), &b""[..]), "unsupported protocol");
    runtime.block_on(server.errors.recv()).unwrap();
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_peers_do_not_delay_others() {
    let server = server().await;
    let _silent = unauthenticated::connect_many_silent(server.addr).await;
    let (mut alice, from) = http_client(server.addr, "alice").await;
    assert_eq!(greeting(&mut alice).await, format!("hello alice from {from}"));
}

#[tokio::test]
async fn graceful_shutdown_ends_handshakes_and_idle_connections() {
    let server = server().await;
    let (mut alice, _) = http_client(server.addr, "alice").await;
    greeting(&mut alice).await;
    let mut in_flight = unauthenticated::connect_silent(server.addr).await;

    server.stop.send(()).unwrap();
    server.running.await.unwrap().unwrap();
    assert_eq!(in_flight.read(&mut [0]).await.unwrap(), 0);
    alice.send_request(request("/")).await.unwrap_err();
}

#[tokio::test]
async fn panic_in_on_error_does_not_stop_the_server() {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice"])));
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(|_| panic!("intended"))
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    let app = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(axum::serve(incoming, app).into_future());
    for _ in 0..3 {
        let mut wrong = TcpStream::connect(addr).await.unwrap();
        answer_by_hand(&mut wrong, "wrong").await;
        assert_eq!(read_verdict(&mut wrong).await, REFUSED);
        drop(wrong);
        let (mut alice, _) = http_client(addr, "alice").await;
        assert_eq!(greeting(&mut alice).await, "hello");
    }
}

/// axum's listeners cannot return an error. If the accept task is gone, a server that waited forever would look as if
/// it were running.
#[tokio::test]
async fn lost_accept_task_panics_the_server() {
    let runtime = Runtime::new().unwrap();
    let incoming = {
        let _entered = runtime.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice"])));
        Incoming::builder(TcpListener::from_std(listener).unwrap(), layer).start().unwrap()
    };
    let server = tokio::spawn(axum::serve(incoming, Router::<()>::new()).into_future());
    runtime.shutdown_background();
    assert!(server.await.unwrap_err().is_panic());
}

#[tokio::test]
async fn wrong_peer_type_is_a_server_error_that_names_it() {
    let server = server().await;
    let (mut alice, _) = http_client(server.addr, "alice").await;
    let expected = [
        ("/wrong-peer", type_name::<PeerInfo<mutual::Peer>>(), "mutual::"),
        ("/wrong-metadata", type_name::<PeerInfo<Identity<u64>>>(), "Identity<u64>"),
    ];
    for (path, expected, part) in expected {
        alice.ready().await.unwrap();
        let response = alice.send_request(request(path)).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let text = text(response).await;
        assert!(expected.contains(part), "{expected}");
        assert!(text.starts_with(&format!("no {expected} for this connection")), "{text}");
        assert!(text.contains(&format!("into_make_service_with_connect_info::<{expected}>()")), "{text}");
    }
    assert_eq!(
        greeting(&mut alice).await.split(' ').nth(1),
        Some("alice"),
        "other handlers are not affected"
    );
}

/// Unit tests of handlers have no connection: without a mock the extractor rejects the request.
#[tokio::test]
async fn peer_info_is_mocked_or_rejected_without_a_connection() {
    let app = Router::new().route("/", get(greet)).with_state(Arc::default());
    let request = || Request::get("/").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let rejection = text(response).await;
    assert!(rejection.contains(type_name::<PeerInfo<Identity>>()), "{rejection}");

    let peer =
        PeerInfo::new(Identity::new("alice".parse().unwrap(), ()), SocketAddr::from(([192, 0, 2, 1], 7)));
    let response = app.layer(MockConnectInfo(peer)).oneshot(request()).await.unwrap();
    assert_eq!(text(response).await, "hello alice from 192.0.2.1:7");
}

#[test]
fn example_output() {
    process::succeeds_and_says(
        "example-axum",
        &[
            "server: Alice from accounting asks from 127.0.0.1:",
            "the server says \"hello alice\"",
            "client: handshake refused",
            "got 35 bytes of challenge, then the server closed",
            "malformed handshake message: the peer speaks HTTP, this side `mutual`",
        ],
    );
}
