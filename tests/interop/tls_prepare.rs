//! TLS as a step before the handshake, under `serve`, `axum::serve` and tonic: the code that the cookbook shows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::routing::get;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use metrics_util::debugging::DebuggingRecorder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, client, server::TlsStream};
use tokio_util::net::Listener;
use tonic::service::InterceptorLayer;
use tonic::transport::server::TlsConnectInfo;
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Status, transport::Channel};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::ServiceBuilder;
use tower_challenge::HandshakeErrorKind::{
    ChannelBinding, Evicted, Malformed, Refused, SourceLimit, Throttled, UnexpectedEof,
};
use tower_challenge::admission::{Admission, AdmissionBuilder, Penalties};
use tower_challenge::mutual::{self, Audience, ServerPeer};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, Connection, Connector, HandshakeError, HandshakeErrorKind,
    HyperAnswerLayer, Incoming, Key, KeyEntry, PeerInfo, serve,
};

use crate::watch::{Log, Meter};

type Tcp = Connection<TcpStream>;

fn key() -> Key {
    Key::new("a key of sixteen bytes and more").unwrap()
}

fn audience() -> Audience {
    Audience::new("greetings").unwrap()
}

pub(crate) fn server() -> mutual::Server<mutual::KeyRing> {
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    mutual::Server::new(keys, audience())
}

pub(crate) fn client() -> mutual::Client {
    mutual::Client::new("alice", &key(), audience()).unwrap()
}

/// Both sides of TLS, with a new certificate that the client trusts.
pub(crate) fn tls() -> (TlsAcceptor, TlsConnector) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = own.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (Arc::new(server).into(), Arc::new(client).into())
}

/// The layer of the cookbook: TLS, then a handshake that must be bound to it.
fn layer<IO>(
    tls: TlsAcceptor,
    admission: &Admission,
) -> ChallengeLayer<
    mutual::Server<mutual::KeyRing>,
    impl Fn(Connection<IO>) -> Accept<Connection<IO>> + Clone + use<IO>,
>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    ChallengeLayer::new(server().require_channel_binding())
        .admission(admission.clone())
        .prepare(move |connection: Connection<IO>| tls.accept(connection))
}

pub(crate) async fn connect_tls<IO: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsConnector,
    io: IO,
) -> io::Result<client::TlsStream<IO>> {
    tls.connect(ServerName::try_from("localhost").unwrap(), io).await
}

type Bound<IO> = Authenticated<client::TlsStream<IO>, ServerPeer>;

async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsConnector,
    io: IO,
    mechanism: mutual::Client,
) -> Result<Bound<IO>, HandshakeError>
where
    client::TlsStream<IO>: tower_challenge::Transport,
{
    Connector::new(mechanism).connect(connect_tls(tls, io).await?).await
}

/// Sends a request over a stream, and returns the text of the response.
pub(crate) async fn http_get(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> String {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").header(header::HOST, "localhost").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub(crate) async fn greet(PeerInfo { peer, addr, .. }: PeerInfo<mutual::Peer>) -> String {
    format!("hello {} from {addr}", peer.identity().key_id())
}

#[tokio::test]
async fn axum_over_tls_with_required_channel_binding() {
    let (acceptor, connector) = tls();
    let admission = Admission::builder().penalties(Penalties::new()).build().unwrap();
    let (report, mut errors) = mpsc::unbounded_channel();
    let incoming =
        Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer(acceptor, &admission))
            .on_error(move |error| report.send(error.handshake_error().unwrap().kind()).unwrap())
            .start()
            .unwrap();
    let addr = *incoming.local_addr();
    let app =
        Router::new().route("/", get(greet)).into_make_service_with_connect_info::<PeerInfo<mutual::Peer>>();
    let (stop, stopped) = oneshot::channel::<()>();
    let axum = axum::serve(incoming, app).with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let running = tokio::spawn(axum.into_future());

    let tcp = || async { TcpStream::connect(addr).await.unwrap() };
    let io = tcp().await;
    let from = io.local_addr().unwrap();
    let stream = connect(&connector, io, client().require_channel_binding()).await.unwrap();
    assert_eq!(http_get(stream).await, format!("hello alice from {from}"));

    // Bound to the channel: a client that leaves out the binding is refused.
    let error =
        connect(&connector, tcp().await, client().dangerous_ignore_channel_binding()).await.unwrap_err();
    assert_eq!((error.kind(), errors.recv().await.unwrap()), (Refused, Refused));
    // Without TLS.
    let mut plain = tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(errors.recv().await.unwrap(), Malformed);
    let error = Connector::new(client().require_channel_binding()).connect(tcp().await).await.unwrap_err();
    assert_eq!(error.kind(), ChannelBinding);
    assert_eq!(errors.recv().await.unwrap(), UnexpectedEof);
    // The penalties so far are 5, 10 and 1 seconds, for the source of all of them.
    assert_eq!(admission.throttled(), 1);
    connect_tls(&connector, tcp().await).await.unwrap_err();
    assert_eq!(errors.recv().await.unwrap(), Throttled);

    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn tonic_over_tls_with_required_channel_binding() {
    let (acceptor, connector) = tls();
    let admission = Admission::default();
    let (report, mut errors) = mpsc::unbounded_channel();
    let incoming =
        Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer(acceptor, &admission))
            .on_error(move |error| report.send(error.handshake_error().unwrap().kind()).unwrap())
            .start()
            .unwrap();
    let addr = *incoming.local_addr();
    let (seen, mut peers) = mpsc::unbounded_channel();
    let authorize = InterceptorLayer::new(move |request: tonic::Request<()>| {
        let info = request.extensions().get::<PeerInfo<mutual::Peer, TlsConnectInfo<SocketAddr>>>();
        let PeerInfo { peer, addr, .. } = info.ok_or_else(|| Status::internal("no PeerInfo of this type"))?;
        seen.send(format!("{} from {}", peer.identity().key_id(), addr.get_ref())).unwrap();
        Ok(request)
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let router = transport::Server::builder().layer(authorize).add_service(health);
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = router.serve_with_incoming_shutdown(incoming, async { stopped.await.unwrap_or_default() });
    let running = tokio::spawn(serve);

    let channel = |mechanism: mutual::Client| {
        let connector = connector.clone();
        let connector = ServiceBuilder::new()
            .layer(HyperAnswerLayer::new(AnswerLayer::new(mechanism)))
            .map_response(TokioIo::new)
            .service_fn(move |_: Uri| {
                let connector = connector.clone();
                async move { connect_tls(&connector, TcpStream::connect(addr).await?).await }
            });
        async move { Endpoint::from_static("http://health").connect_with_connector(connector).await }
    };
    let channel_of_alice = channel(client().require_channel_binding()).await.unwrap();
    assert_eq!(check(channel_of_alice).await, ServingStatus::Serving);
    let peer = peers.recv().await.unwrap();
    assert!(peer.starts_with("alice from 127.0.0.1:"), "{peer}");

    let error = channel(client().dangerous_ignore_channel_binding()).await.unwrap_err();
    assert_eq!(HandshakeError::find_in(&error).unwrap().kind(), Refused);
    assert_eq!(errors.recv().await.unwrap(), Refused);

    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

pub(crate) async fn check(channel: Channel) -> ServingStatus {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

/// A listener whose connections the test creates, from any address and without a file descriptor.
struct Accepts(mpsc::UnboundedReceiver<(DuplexStream, SocketAddr)>);

impl Listener for Accepts {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, SocketAddr)>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(Ok(accepted)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 254], 443).into())
    }
}

/// `axum::serve` over TLS, whose connections the test creates.
struct Flooded {
    connections: mpsc::UnboundedSender<(DuplexStream, SocketAddr)>,
    errors: mpsc::UnboundedReceiver<ServeError<SocketAddr>>,
    admission: Admission,
    tls: TlsConnector,
}

impl Flooded {
    fn start(admission: AdmissionBuilder) -> Self {
        let (acceptor, tls) = tls();
        let admission = admission.build().unwrap();
        let (connections, accepts) = mpsc::unbounded_channel();
        let (report, errors) = mpsc::unbounded_channel();
        let incoming = Incoming::builder(Accepts(accepts), layer(acceptor, &admission))
            .on_error(move |error| report.send(error).unwrap_or_default())
            .start()
            .unwrap();
        let app = Router::new()
            .route("/", get(greet))
            .into_make_service_with_connect_info::<PeerInfo<mutual::Peer>>();
        tokio::spawn(axum::serve(incoming, app).into_future());
        Self { connections, errors, admission, tls }
    }

    fn connect(&self, addr: SocketAddr) -> DuplexStream {
        let (client, server) = duplex(64 * 1024);
        self.connections.send((server, addr)).unwrap();
        client
    }

    async fn assert_serves(&self, addr: SocketAddr) {
        let io = self.connect(addr);
        let stream = connect(&self.tls, io, client().require_channel_binding()).await.unwrap();
        assert_eq!(http_get(stream).await, format!("hello alice from {addr}"));
    }

    async fn settle(&self, in_flight: usize) {
        while self.admission.pending() != in_flight {
            yield_now().await;
        }
    }

    async fn error(&mut self) -> (SocketAddr, HandshakeErrorKind) {
        let error = self.errors.recv().await.unwrap();
        (*error.addr().unwrap(), error.handshake_error().unwrap().kind())
    }
}

/// Peers that stay silent in TLS are in-flight handshakes: they are counted, and at the cap the oldest ones are evicted
/// for new connections.
#[tokio::test]
async fn silent_tls_peers_are_counted_and_evicted() {
    let mut server = Flooded::start(Admission::builder().max_pending(500));
    // Seven sources.
    let addr = |peer: u16| SocketAddr::from(([192, 0, 2, u8::try_from(peer % 7).unwrap()], peer));
    let mut silent: Vec<_> = (0..500).map(|peer| server.connect(addr(peer))).collect();
    server.settle(500).await;
    assert!(server.errors.try_recv().is_err(), "none was evicted");
    silent.extend((500..700).map(|peer| server.connect(addr(peer))));
    for _ in 0..200 {
        assert_eq!(server.error().await.1, Evicted);
    }
    assert_eq!(server.admission.pending(), 500);

    let legitimate = SocketAddr::from(([198, 51, 100, 1], 4711));
    for _ in 0..10 {
        server.assert_serves(legitimate).await;
        assert_eq!(server.error().await.1, Evicted);
        // The legitimate client has left a slot.
        server.settle(499).await;
        silent.push(server.connect(addr(silent.len().try_into().unwrap())));
        server.settle(500).await;
    }
    // The connection of an evicted peer is closed.
    let mut closed = 0;
    for peer in &mut silent {
        closed += usize::from(unconstrained(peer.read(&mut [0])).now_or_never().is_some());
    }
    assert_eq!(closed, 210);
    drop(silent);
    server.settle(0).await;
}

#[tokio::test]
async fn silent_tls_peers_of_one_source_are_limited() {
    let mut server = Flooded::start(Admission::builder().max_pending(500));
    let addr = |peer| SocketAddr::from(([192, 0, 2, 1], peer));
    let _silent: Vec<_> = (0..700).map(|peer| server.connect(addr(peer))).collect();
    // Three quarters of the slots, since its limit of 125 applies from then on.
    for _ in 375..700 {
        assert_eq!(server.error().await.1, SourceLimit);
    }
    assert_eq!(server.admission.pending(), 375);
    server.assert_serves(SocketAddr::from(([198, 51, 100, 1], 4711))).await;
    assert!(server.errors.try_recv().is_err(), "none had to be evicted");
}

/// A step that fails is one failed handshake in the log and in the metrics, like any other.
#[tokio::test]
async fn failed_tls_is_observed_once() {
    let (log, _capture) = Log::start();
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut meter = Meter::new(&recorder);

    let (acceptor, connector) = tls();
    let service = ServiceBuilder::new().layer(layer(acceptor, &Admission::default())).service_fn(
        |mut stream: Authenticated<TlsStream<Tcp>, mutual::Peer>| async move {
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(server.into_future());

    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut alert = Vec::new();
    plain.read_to_end(&mut alert).await.unwrap();
    let io = TcpStream::connect(addr).await.unwrap();
    let mut stream = connect(&connector, io, client().require_channel_binding()).await.unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "hello");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();

    let failed = log.server_events_with("handshake failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].fields["error.type"], "malformed");
    assert!(log.events_with("connection failed").is_empty());
    let spans = log.server_spans();
    let outcomes: Vec<_> = spans.iter().map(|span| &*span.fields["challenge.outcome"]).collect();
    assert_eq!(outcomes, ["malformed", "success"]);
    assert!(spans.iter().all(|span| span.closed && span.fields["network.peer.address"] == "127.0.0.1"));
    let counted = meter.handshakes("server");
    let expected = [("mechanism=mutual, outcome=malformed", 1), ("mechanism=mutual, outcome=success", 1)];
    assert_eq!(counted, expected.map(|(labels, count)| (labels.to_owned(), count)).into());
    assert_eq!(meter.number("challenge_handshakes_pending"), Some(0));
}
