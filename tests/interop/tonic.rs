//! A tonic server with an `Incoming` as its listener, and tonic's own client over authenticated streams.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::TokioIo;
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
    AnswerLayer, ChallengeLayer, ConnectError, HandshakeError, HandshakeErrorKind, HyperAnswerLayer,
    Identity, Incoming, PeerInfo, one_way,
};

use crate::support::{key, ring};
use crate::{process, unauthenticated};

struct Server {
    addr: SocketAddr,
    /// How many calls were received.
    called: Arc<AtomicUsize>,
    errors: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), transport::Error>>,
}

/// Starts a server on which only alice may call. The error for other peers names the peer.
async fn server() -> Server {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["alice", "bob"])));
    let (report, errors) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer)
        .on_error(move |error| report.send(error.to_string()).unwrap())
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

/// Connects a channel with this key, and returns the address that it connects from.
async fn connect(addr: SocketAddr, text: &str) -> Result<(Channel, SocketAddr), transport::Error> {
    let (report, mut from) = mpsc::unbounded_channel();
    let connector = ServiceBuilder::new()
        .layer(HyperAnswerLayer::new(AnswerLayer::new(one_way::Client::new(&key(text)))))
        .map_response(move |stream: TcpStream| {
            report.send(stream.local_addr().unwrap()).unwrap();
            TokioIo::new(stream)
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
async fn services_receive_peer_and_address() {
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
async fn wrong_key_is_refused_and_found_in_the_transport_error() {
    let mut server = server().await;
    let error = connect(server.addr, "carol").await.unwrap_err();
    let found = HandshakeError::find_in(&error).expect("the handshake failed");
    assert_eq!(found.kind(), HandshakeErrorKind::Refused);
    let mut chain = std::iter::successors(error.source(), |&error| error.source());
    let wrapped = chain.find_map(|error| error.downcast_ref::<ConnectError>());
    assert!(matches!(wrapped, Some(ConnectError::Handshake(_))), "{error:?}");
    let report = server.errors.recv().await.unwrap();
    assert!(report.ends_with(": handshake refused: the answer matches none of the keys"), "{report}");
    assert_eq!(server.called.load(Ordering::Relaxed), 0);
}

/// A gRPC client without the handshake reads a challenge where it expects HTTP/2. The server takes the beginning of the
/// preface for a wrong answer.
#[tokio::test]
async fn grpc_without_handshake_calls_nothing() {
    let mut server = server().await;
    unauthenticated::assert_refused(server.addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let report = server.errors.recv().await.unwrap();
    let expected = ": handshake refused: the peer speaks HTTP/2, this side `one_way`";
    assert!(report.ends_with(expected), "{report}");

    let plain = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    // The TCP connection is established. It may be closed before or after the first call.
    if let Ok(channel) = plain.connect().await {
        check(channel).await.unwrap_err();
    }
    assert!(server.errors.recv().await.unwrap().contains("handshake"));
    assert_eq!(server.called.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_peers_do_not_delay_others() {
    let server = server().await;
    let _silent = unauthenticated::connect_many_silent(server.addr).await;
    let (alice, _) = connect(server.addr, "alice").await.unwrap();
    assert_eq!(check(alice).await.unwrap(), ServingStatus::Serving);
}

#[tokio::test]
async fn graceful_shutdown_ends_handshakes_and_idle_connections() {
    let server = server().await;
    let (alice, _) = connect(server.addr, "alice").await.unwrap();
    check(alice.clone()).await.unwrap();
    let mut in_flight = unauthenticated::connect_silent(server.addr).await;

    server.stop.send(()).unwrap();
    server.running.await.unwrap().unwrap();
    assert_eq!(in_flight.read(&mut [0]).await.unwrap(), 0);
    check(alice).await.unwrap_err();
}

#[test]
fn example_output() {
    process::succeeds_and_says(
        "example-tonic",
        &[
            "server: alice calls from 127.0.0.1:",
            "client: the server is \"SERVING\"",
            "server: bob calls from 127.0.0.1:",
            "client: you may not",
            "handshake refused",
            "malformed handshake message: the peer speaks HTTP/2, this side `mutual`",
        ],
    );
}
