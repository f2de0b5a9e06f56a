//! axum, hyper and tonic over `noise`: the framework gets an encrypted stream, and its handlers know the peer.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, body, client, header};
use hyper_util::client::legacy::connect::{HttpConnector, HttpInfo};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tonic::service::InterceptorLayer;
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer as _, ServiceBuilder, ServiceExt as _};
use tower_challenge::noise::{self, Audience, NoiseStream, ServerPeer, Suite};
use tower_challenge::{
    AnswerLayer, Authenticated, BoxError, ChallengeLayer, Connection, Connector, HandshakeError,
    HandshakeErrorKind, HyperAnswerLayer, Incoming, Key, KeyEntry, PeerInfo, serve,
};

use crate::support::entries;

const AUDIENCE: &str = "orders";

/// Keys of 16 bytes and more, which are also their ids.
const ALICE: &str = "alice, with a key";
const BOB: &str = "bob, with a key of his own";

fn server(ids: &[&str]) -> noise::Server<noise::KeyRing> {
    noise::Server::new(noise::KeyRing::new(entries(ids)).unwrap(), Audience::new(AUDIENCE).unwrap())
}

fn client_of(id: &str, key: &str) -> noise::Client {
    noise::Client::from_entry(&KeyEntry::new(id, Key::new(key).unwrap()).unwrap(), AUDIENCE).unwrap()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn text(body: impl body::Body<Data = Bytes, Error: std::fmt::Debug>) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// More than a record.
fn long_text() -> String {
    "a long body ".repeat(10_000)
}

#[tokio::test]
async fn axum_handlers_receive_peer_and_address() {
    async fn greet(PeerInfo { peer, addr, .. }: PeerInfo<noise::Peer>, body: String) -> String {
        format!("hello {} from {addr}: {body}", peer.identity().key_id())
    }

    let (listener, addr) = listener().await;
    let incoming = Incoming::builder(listener, ChallengeLayer::new(server(&[ALICE, BOB]))).start().unwrap();
    let app = Router::new().route("/", get(greet));
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = axum::serve(incoming, app.into_make_service_with_connect_info::<PeerInfo<noise::Peer>>())
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let running = tokio::spawn(serve.into_future());

    let mut connections = Vec::new();
    for (id, suite) in [(ALICE, Suite::Aes256Gcm), (BOB, Suite::ChaCha20Poly1305)] {
        let io = TcpStream::connect(addr).await.unwrap();
        let from = io.local_addr().unwrap();
        let io = Connector::new(client_of(id, id).suite(suite)).connect(io).await.unwrap();
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..2 {
            sender.ready().await.unwrap();
            let request = Request::get("/").header(header::HOST, "localhost");
            let request = request.body(Body::from(long_text())).unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(text(response.into_body()).await == format!("hello {id} from {from}: {}", long_text()));
        }
        // The connection stays open.
        connections.push((sender, connection));
    }

    let refused =
        Connector::new(client_of(ALICE, BOB)).connect(TcpStream::connect(addr).await.unwrap()).await;
    assert_eq!(refused.unwrap_err().kind(), HandshakeErrorKind::Refused);

    // The idle connections end with a CLOSE: without it, hyper's client would report an error.
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    for (_sender, connection) in connections {
        connection.await.unwrap().unwrap();
    }
}

type Stream = Authenticated<NoiseStream<Connection<TcpStream>>, noise::Peer>;

/// Says who the peer is, where it comes from, and which session this is.
async fn serve_http(stream: Stream) -> Result<(), BoxError> {
    let peer = stream.peer();
    let addr = stream.get_ref().get_ref().addr();
    let greeting = format!("{} from {addr} in {:?}", peer.identity().key_id(), peer.handshake_hash());
    let shutdown = stream.shutdown_token().expect("`serve` sets one").clone();
    let respond = service_fn(move |_: Request<body::Incoming>| {
        ready(Ok::<_, Infallible>(Response::new(greeting.clone())))
    });
    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        served = connection.as_mut() => return served,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// The connector never completes a second connection: only the pool can serve the second request. Otherwise the client
/// might start to connect just before the first connection is idle again.
fn hyper_client(
    id: &str,
    key: &str,
    http2: bool,
) -> Client<impl legacy::connect::Connect + Clone, Empty<Bytes>> {
    let connects = Arc::new(AtomicUsize::new(0));
    let only_one = tower::service_fn(move |uri| {
        let first = connects.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if first { HttpConnector::new().oneshot(uri).await } else { pending().await } }
    });
    let layer = HyperAnswerLayer::new(AnswerLayer::new(client_of(id, key)));
    Client::builder(TokioExecutor::new()).http2_only(http2).build(layer.layer(only_one))
}

#[tokio::test]
async fn hyper_client_reuses_encrypted_connections() {
    for http2 in [false, true] {
        let (listener, addr) = listener().await;
        let service =
            ServiceBuilder::new().layer(ChallengeLayer::new(server(&[ALICE]))).service_fn(serve_http);
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = serve(listener, service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
        let running = tokio::spawn(async move { serve.await.unwrap() });

        let uri: Uri = format!("http://{addr}/").parse().unwrap();
        let client = hyper_client(ALICE, ALICE, http2);
        let mut sessions = Vec::new();
        for _ in 0..2 {
            let response = client.get(uri.clone()).await.unwrap();
            let info: &HttpInfo = response.extensions().get().unwrap();
            let peer: &ServerPeer = response.extensions().get().unwrap();
            let session = format!("{ALICE} from {} in {:?}", info.local_addr(), peer.handshake_hash());
            assert_eq!(text(response.into_body()).await, session);
            sessions.push(session);
        }
        assert_eq!(sessions[0], sessions[1]);

        let error = hyper_client(ALICE, BOB, http2).get(uri).await.unwrap_err();
        let found = HandshakeError::find_in(&error).expect("the handshake failed");
        assert_eq!(found.kind(), HandshakeErrorKind::Refused);

        stop.send(()).unwrap();
        let shutdown = running.await.unwrap();
        // A client of HTTP/2 closes its socket while the server still has a last frame for it. Its loss is an error, unless
        // it was sent in time.
        let completed = if http2 { shutdown.completed } else { 1 };
        assert_eq!((shutdown.completed, shutdown.aborted), (completed, 0));
    }
}

#[tokio::test]
async fn tonic_services_receive_peer_and_address() {
    let (listener, addr) = listener().await;
    let incoming = Incoming::builder(listener, ChallengeLayer::new(server(&[ALICE, BOB]))).start().unwrap();
    let called = Arc::new(AtomicUsize::new(0));
    let authorize = InterceptorLayer::new({
        let called = Arc::clone(&called);
        move |request: tonic::Request<()>| {
            called.fetch_add(1, Ordering::Relaxed);
            let PeerInfo { peer, addr, .. } = request.extensions().get::<PeerInfo<noise::Peer>>().unwrap();
            let id = peer.identity().key_id();
            if *id == ALICE {
                Ok(request)
            } else {
                Err(Status::permission_denied(format!("{id} from {addr}")))
            }
        }
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let router = transport::Server::builder().layer(authorize).add_service(health);
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = router.serve_with_incoming_shutdown(incoming, async { stopped.await.unwrap_or_default() });
    let running = tokio::spawn(serve);

    let check = async |id: &str, key: &str| {
        let (report, mut from) = mpsc::unbounded_channel();
        let connector = ServiceBuilder::new()
            .layer(HyperAnswerLayer::new(AnswerLayer::new(client_of(id, key))))
            .map_response(move |stream: TcpStream| {
                report.send(stream.local_addr().unwrap()).unwrap();
                TokioIo::new(stream)
            })
            .service_fn(move |_: Uri| TcpStream::connect(addr));
        let channel = Endpoint::from_static("http://health").connect_with_connector(connector).await?;
        let response = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        Ok::<_, transport::Error>((response, from.recv().await.unwrap()))
    };
    let (served, _) = check(ALICE, ALICE).await.unwrap();
    assert_eq!(served.unwrap().into_inner().status(), ServingStatus::Serving);
    let (denied, from) = check(BOB, BOB).await.unwrap();
    let denied = denied.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, &*format!("{BOB} from {from}")));
    let error = check(ALICE, BOB).await.unwrap_err();
    let found = HandshakeError::find_in(&error).expect("the handshake failed");
    assert_eq!(found.kind(), HandshakeErrorKind::Refused);
    assert_eq!(called.load(Ordering::Relaxed), 2);

    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}
