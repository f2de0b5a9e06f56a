//! A tonic server over a pulled listener, and tonic's own client behind a handshake.
#![cfg(all(feature = "tonic", feature = "net"))]

#[path = "support/process.rs"]
mod process;
#[path = "support/stranger.rs"]
mod stranger;
mod support;

use std::error::Error;
use std::io;
use std::iter::successors;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::TokioIo;
use support::{key, ring};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::service::InterceptorLayer;
use tonic::transport::{self, Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::ServiceBuilder;
use tower_challenge::{
    AnswerLayer, ChallengeLayer, ConnectError, HandshakeErrorKind, Identity, Incoming, PeerInfo, one_way,
};

struct Server {
    addr: SocketAddr,
    /// How many calls have come in.
    called: Arc<AtomicUsize>,
    errors: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), transport::Error>>,
}

/// Lets alice call, and tells everybody else who it takes them for.
async fn server() -> Server {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice", "bob"])));
    let (told, errors) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(move |error| told.send(error.to_string()).unwrap())
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    let called = Arc::new(AtomicUsize::new(0));
    let authorize = InterceptorLayer::new({
        let called = Arc::clone(&called);
        move |request: Request<()>| {
            called.fetch_add(1, Ordering::Relaxed);
            let PeerInfo { peer, addr, .. } = request.extensions().get::<PeerInfo<Identity>>().unwrap();
            if *peer.key_id() == "alice" {
                return Ok(request);
            }
            Err(Status::permission_denied(format!("{} from {addr}", peer.key_id())))
        }
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let router = transport::Server::builder().layer(authorize).add_service(health);
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = router.serve_with_incoming_shutdown(incoming, async { stopped.await.unwrap_or_default() });
    Server { addr, called, errors, stop, running: tokio::spawn(serve) }
}

/// A channel that answers with this key, and the address that it comes from.
async fn connect(addr: SocketAddr, text: &str) -> Result<(Channel, SocketAddr), transport::Error> {
    let (tell, mut from) = mpsc::unbounded_channel();
    let connector = ServiceBuilder::new()
        .map_response(TokioIo::new)
        .layer(AnswerLayer::new(one_way::Client::new(&key(text))))
        .map_response(move |stream: TcpStream| {
            tell.send(stream.local_addr().unwrap()).unwrap();
            stream
        })
        .service_fn(move |_: Uri| TcpStream::connect(addr));
    let channel = Endpoint::from_static("http://health").connect_with_connector(connector).await?;
    Ok((channel, from.recv().await.unwrap()))
}

async fn check(channel: Channel) -> Result<ServingStatus, Status> {
    let response = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    Ok(response.into_inner().status())
}

#[tokio::test]
async fn services_know_the_peer_and_its_address() {
    let server = server().await;
    let (alice, _) = connect(server.addr, "alice").await.unwrap();
    for _ in 0..2 {
        assert_eq!(check(alice.clone()).await.unwrap(), ServingStatus::Serving);
    }
    let (bob, from) = connect(server.addr, "bob").await.unwrap();
    let denied = check(bob).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, &*format!("bob from {from}")));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_the_client_can_tell() {
    let mut server = server().await;
    let error = connect(server.addr, "carol").await.unwrap_err();
    let reason = successors(Some(&error as &(dyn Error + 'static)), |&error| error.source())
        .find_map(|error| error.downcast_ref::<ConnectError<io::Error>>());
    let Some(ConnectError::Handshake(reason)) = reason else { panic!("{error:?}") };
    assert_eq!(reason.kind(), HandshakeErrorKind::Refused);
    assert!(server.errors.recv().await.unwrap().ends_with("handshake refused"));
    assert_eq!(server.called.load(Ordering::Relaxed), 0);
}

/// What such a client sees is a challenge where it expects HTTP/2; what it has sent is taken for an answer.
#[tokio::test]
async fn a_client_without_a_handshake_calls_nothing() {
    let mut server = server().await;
    stranger::speaks(server.addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(server.errors.recv().await.unwrap().ends_with("handshake refused"));

    let plain = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    // There is a connection; whether it is over before or after the first call is a race.
    if let Ok(channel) = plain.connect().await {
        check(channel).await.unwrap_err();
    }
    assert!(server.errors.recv().await.unwrap().contains("handshake"));
    assert_eq!(server.called.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_strangers_delay_nobody() {
    let server = server().await;
    let _silent = stranger::many_silent(server.addr).await;
    let (alice, _) = connect(server.addr, "alice").await.unwrap();
    assert_eq!(check(alice).await.unwrap(), ServingStatus::Serving);
}

#[tokio::test]
async fn a_graceful_shutdown_ends_handshakes_and_idle_connections() {
    let server = server().await;
    let (alice, _) = connect(server.addr, "alice").await.unwrap();
    check(alice.clone()).await.unwrap();
    let mut pending = stranger::silent(server.addr).await;

    server.stop.send(()).unwrap();
    server.running.await.unwrap().unwrap();
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0);
    check(alice).await.unwrap_err();
}

#[cfg(feature = "mutual")]
#[test]
fn the_example_succeeds_and_says_so() {
    process::succeeds_and_says(
        "tonic",
        &[
            "server: alice calls from 127.0.0.1:",
            "client: the server is \"SERVING\"",
            "server: bob calls from 127.0.0.1:",
            "client: you may not",
            "handshake refused",
            "malformed handshake message",
        ],
    );
}
