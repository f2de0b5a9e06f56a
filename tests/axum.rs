//! `axum::serve` over a pulled listener, with real HTTP clients.
#![cfg(feature = "axum")]

#[path = "support/process.rs"]
mod process;
#[path = "support/stranger.rs"]
mod stranger;
mod support;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::MockConnectInfo;
use axum::extract::{ConnectInfo, State};
use axum::http::{Request, StatusCode, header};
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use support::{answer_by_hand, connector, ring};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream, unix};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;
use tower_challenge::{ChallengeLayer, HandshakeErrorKind, Identity, Incoming, PeerInfo, one_way};

static_assertions::assert_impl_all!(Incoming<UnixStream, Identity, unix::SocketAddr>: axum::serve::Listener);

struct Server {
    addr: SocketAddr,
    handled: Arc<AtomicUsize>,
    errors: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<std::io::Result<()>>,
}

async fn server() -> Server {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice", "bob"])));
    let (told, errors) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(move |error| told.send(error.to_string()).unwrap())
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    let handled = Arc::default();
    let app = Router::new().route("/", get(greet)).with_state(Arc::clone(&handled));
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

/// A connection of a real HTTP client, and the address that it comes from.
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

fn request() -> Request<Body> {
    Request::get("/").header(header::HOST, "localhost").body(Body::empty()).unwrap()
}

async fn response(sender: &mut SendRequest<Body>) -> String {
    sender.ready().await.unwrap();
    let response = sender.send_request(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn handlers_know_the_peer_and_its_address() {
    let server = server().await;
    let (mut alice, alice_addr) = http_client(server.addr, "alice").await;
    let (mut bob, bob_addr) = http_client(server.addr, "bob").await;
    for _ in 0..2 {
        assert_eq!(response(&mut alice).await, format!("hello alice from {alice_addr}"));
        assert_eq!(response(&mut bob).await, format!("hello bob from {bob_addr}"));
    }
}

#[tokio::test]
async fn a_wrong_key_reaches_no_handler() {
    let mut server = server().await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let from = stream.local_addr().unwrap();
    let refused = connector("carol").connect(stream).await.unwrap_err();
    assert_eq!(refused.kind(), HandshakeErrorKind::Refused);
    assert_eq!(server.errors.recv().await.unwrap(), format!("connection from {from}: handshake refused"));
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

/// What such a client sees is a challenge where it expects a response; what it has sent is taken for an answer.
#[tokio::test]
async fn a_client_without_a_handshake_reaches_no_handler() {
    let mut server = server().await;
    stranger::speaks(server.addr, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(server.errors.recv().await.unwrap().ends_with("handshake refused"));

    let mut client = http_over(TcpStream::connect(server.addr).await.unwrap()).await;
    client.send_request(request()).await.unwrap_err();
    server.errors.recv().await.unwrap();
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

#[test]
#[ignore = "needs curl"]
fn curl_reaches_no_handler() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut server = runtime.block_on(server());
    let url = format!("http://{}/", server.addr);
    let curl =
        Command::new("curl").args(["--silent", "--max-time", "20", &url]).stderr(Stdio::inherit()).output();
    let curl = curl.expect("curl is there");
    assert_eq!((curl.status.code(), &*curl.stdout), (Some(1), &b""[..]), "no protocol that curl knows");
    runtime.block_on(server.errors.recv()).unwrap();
    assert_eq!(server.handled.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_strangers_delay_nobody() {
    let server = server().await;
    let _silent = stranger::many_silent(server.addr).await;
    let (mut alice, from) = http_client(server.addr, "alice").await;
    assert_eq!(response(&mut alice).await, format!("hello alice from {from}"));
}

#[tokio::test]
async fn a_graceful_shutdown_ends_handshakes_and_idle_connections() {
    let server = server().await;
    let (mut alice, _) = http_client(server.addr, "alice").await;
    response(&mut alice).await;
    let mut pending = stranger::silent(server.addr).await;

    server.stop.send(()).unwrap();
    server.running.await.unwrap().unwrap();
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0);
    alice.send_request(request()).await.unwrap_err();
}

/// axum can't be told that the task which accepts is gone; a server that waited for ever would look as if it ran.
#[tokio::test]
async fn a_panic_of_the_error_hook_is_the_server_s() {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice"])));
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(|_| panic!("as it was told"))
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    let server = tokio::spawn(axum::serve(incoming, Router::<()>::new()).into_future());
    let mut wrong = TcpStream::connect(addr).await.unwrap();
    answer_by_hand(&mut wrong, "wrong").await;
    drop(wrong);
    assert!(server.await.unwrap_err().is_panic());
}

#[cfg(feature = "mutual")]
#[test]
fn the_example_succeeds_and_says_so() {
    process::succeeds_and_says(
        "axum",
        &[
            "server: Alice from accounting asks from 127.0.0.1:",
            "the server says \"hello alice\"",
            "client: handshake refused",
            "got 35 bytes of challenge, then the server closed",
            "malformed handshake message",
        ],
    );
}

/// As a handler's unit test has it, and as it is where nobody says who the peer is.
#[tokio::test]
async fn without_a_connection_the_peer_is_mocked_or_missing() {
    let app = Router::new().route("/", get(greet)).with_state(Arc::default());
    let request = || Request::get("/").body(Body::empty()).unwrap();
    let status = app.clone().oneshot(request()).await.unwrap().status();
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);

    let peer =
        PeerInfo::new(Identity::new("alice".parse().unwrap(), ()), SocketAddr::from(([192, 0, 2, 1], 7)));
    let response = app.layer(MockConnectInfo(peer)).oneshot(request()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "hello alice from 192.0.2.1:7");
}
