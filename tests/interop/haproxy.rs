//! A server behind a load balancer that sends PROXY protocol headers: Debian's HAProxy, and one that the test plays.
#![cfg(unix)]

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use metrics_util::debugging::DebuggingRecorder;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tonic::service::InterceptorLayer;
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tower::ServiceBuilder;
use tower_challenge::HandshakeErrorKind::{Refused, Throttled};
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::prepare::{Proxied, ProxyProtocol};
use tower_challenge::serve::ServeError;
use tower_challenge::transport::TransportInfo;
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, Connection, Connector, HandshakeErrorKind, HyperAnswerLayer,
    Incoming, Key, PeerInfo, Transport, serve,
};
use tracing::Level;

use crate::process::Running;
use crate::tls_prepare::{check, client, connect_tls, greet, http_get, server, tls};
use crate::watch::{Log, Meter};

type Tcp = Connection<TcpStream>;
type Layer = ChallengeLayer<mutual::Server<mutual::KeyRing>, ProxyProtocol>;

/// The address from which HAProxy connects to the server.
const BALANCER: &str = "127.0.0.50";

/// HAProxy in front of one server.
struct HaProxy {
    addr: SocketAddr,
    _running: Running,
    _directory: TempDir,
}

impl HaProxy {
    /// Starts HAProxy. `options` are those of its line for the server.
    async fn start(server: SocketAddr, options: &str) -> Self {
        let [addr, ready] = free_addrs();
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("haproxy.cfg");
        let text = format!(
            "global
    maxconn 100
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
listen balancer
    bind {addr}
    server server {server} source {BALANCER} {options}
listen ready
    bind {ready}
"
        );
        std::fs::write(&config, text).unwrap();
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"];
        let program = program.into_iter().find(|path| std::fs::exists(path).unwrap()).unwrap_or("haproxy");
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&config).stderr(Stdio::inherit());
        let running = Running::start(&mut command);
        // It does not announce that it listens. The last listener is the last that it binds.
        while TcpStream::connect(ready).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        Self { addr, _running: running, _directory: directory }
    }
}

/// Returns two free addresses, on an IP address that no other test uses.
fn free_addrs() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.51:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Connects from this loopback address.
async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

fn trusted() -> ProxyProtocol {
    ProxyProtocol::from_trusted([format!("{BALANCER}/32").parse().unwrap()])
}

/// A source is throttled after its first failure that has a penalty.
fn strict() -> Admission {
    Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO)).build().unwrap()
}

fn layer(admission: &Admission) -> Layer {
    ChallengeLayer::new(server()).admission(admission.clone()).prepare(trusted())
}

/// Creates an `on_error` callback that sends the kinds of failed handshakes.
fn report_kinds()
-> (impl FnMut(ServeError<SocketAddr>) + Send + 'static, mpsc::UnboundedReceiver<HandshakeErrorKind>) {
    let (report, errors) = mpsc::unbounded_channel();
    let on_error = move |error: ServeError<SocketAddr>| {
        report.send(error.handshake_error().unwrap().kind()).unwrap_or_default();
    };
    (on_error, errors)
}

/// Sends the client the address that the server sees.
async fn tell<T: AsyncRead + AsyncWrite + Transport + Unpin>(
    mut stream: Authenticated<T, mutual::Peer>,
) -> io::Result<()> {
    let addr = TransportInfo::from_stream(&stream).peer_addr.unwrap();
    stream.write_all(addr.to_string().as_bytes()).await
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Serve,
    Incoming,
}

struct Server {
    addr: SocketAddr,
    /// The addresses that `accept_with_addr` returned.
    accepted: mpsc::UnboundedReceiver<SocketAddr>,
    errors: mpsc::UnboundedReceiver<HandshakeErrorKind>,
    _stop: oneshot::Sender<()>,
}

impl Server {
    async fn start(way: Way, layer: Layer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (accept, accepted) = mpsc::unbounded_channel();
        let (on_error, errors) = report_kinds();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or_default() };
        match way {
            Way::Serve => {
                let service = ServiceBuilder::new().layer(layer).service_fn(tell::<Proxied<Tcp>>);
                let server = serve(listener, service).graceful_shutdown(stopped).on_error(on_error);
                tokio::spawn(server.into_future());
            }
            Way::Incoming => {
                let mut incoming = Incoming::builder(listener, layer)
                    .graceful_shutdown(stopped)
                    .on_error(on_error)
                    .start()
                    .unwrap();
                tokio::spawn(async move {
                    while let Ok((stream, addr)) = incoming.accept_with_addr().await {
                        accept.send(addr).unwrap();
                        tokio::spawn(tell(stream));
                    }
                });
            }
        }
        Self { addr, accepted, errors, _stop: stop }
    }

    /// Returns the next error that is not about a probe.
    async fn error(&mut self) -> HandshakeErrorKind {
        loop {
            match self.errors.recv().await.unwrap() {
                HandshakeErrorKind::Probe => {}
                kind => return kind,
            }
        }
    }
}

/// Completes the handshake, and asserts that the server sees the client's own address.
async fn assert_seen(server: &mut Server, way: Way, io: TcpStream) {
    let from = io.local_addr().unwrap();
    let mut stream = Connector::new(client()).connect(io).await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert_eq!(told, from.to_string());
    if let Way::Incoming = way {
        assert_eq!(server.accepted.recv().await.unwrap(), from);
    }
}

#[tokio::test]
#[ignore = "needs haproxy"]
async fn client_addresses_arrive_and_are_throttled() {
    let wrong = Key::new("another key of sixteen bytes").unwrap();
    let wrong = mutual::Client::new("alice", &wrong, Audience::new("greetings").unwrap()).unwrap();
    for way in [Way::Serve, Way::Incoming] {
        for options in [
            "send-proxy",
            "send-proxy-v2",
            "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
            "send-proxy-v2-ssl",
        ] {
            let admission = strict();
            let mut server = Server::start(way, layer(&admission)).await;
            let haproxy = HaProxy::start(server.addr, options).await;
            for source in ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.2"] {
                assert_seen(&mut server, way, connect_from(source, haproxy.addr).await).await;
            }

            // One client fails and is throttled, and no other.
            let io = connect_from("127.0.0.2", haproxy.addr).await;
            assert_eq!(Connector::new(wrong.clone()).connect(io).await.unwrap_err().kind(), Refused);
            assert_eq!(server.error().await, Refused);
            let mut io = connect_from("127.0.0.2", haproxy.addr).await;
            assert_eq!(io.read(&mut [0]).await.unwrap_or(0), 0, "{way:?} {options}");
            assert_eq!(server.error().await, Throttled);
            assert_seen(&mut server, way, connect_from("127.0.0.3", haproxy.addr).await).await;
            assert_eq!(admission.throttled(), 1, "{way:?} {options}");

            // The server is reachable without the load balancer as well, and needs no header then.
            let direct = connect_from("127.0.0.4", server.addr).await;
            assert_seen(&mut server, way, direct).await;
        }
    }
}

/// HAProxy checks a server by a connection that it resets at once.
#[tokio::test]
#[ignore = "needs haproxy"]
async fn health_checks_are_probes_and_fill_no_log() {
    // If HAProxy checks an explicit address, it sends a header only on request.
    for (options, explicit, has_header) in [
        ("send-proxy", false, true),
        ("send-proxy-v2", false, true),
        ("send-proxy check-send-proxy", true, true),
        ("send-proxy-v2 check-send-proxy", true, true),
        ("send-proxy", true, false),
        ("send-proxy-v2", true, false),
    ] {
        let (log, _capture) = Log::start();
        let recorder = DebuggingRecorder::new();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let mut meter = Meter::new(&recorder);

        let admission = strict();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = ServiceBuilder::new().layer(layer(&admission)).service_fn(tell::<Proxied<Tcp>>);
        let running = tokio::spawn(serve(listener, service).into_future());
        let explicit = if explicit { format!("addr 127.0.0.1 port {}", addr.port()) } else { String::new() };
        let haproxy = HaProxy::start(addr, &format!("{options} check inter 10ms {explicit}")).await;
        let probe = "mechanism=mutual, outcome=probe";
        if has_header {
            while meter.handshakes("server").get(probe).is_none_or(|&probes| probes < 20) {
                sleep(Duration::from_millis(10)).await;
            }
        } else {
            // Without data it resets the connection before the last segment of TCP's handshake, so that most are never
            // accepted.
            sleep(Duration::from_millis(200)).await;
        }
        // The server is healthy, and a client gets in.
        let io = connect_from("127.0.0.2", haproxy.addr).await;
        let from = io.local_addr().unwrap().to_string();
        let mut told = String::new();
        let mut stream = Connector::new(client()).connect(io).await.unwrap();
        stream.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, from);
        drop(haproxy);

        let outcomes = meter.handshakes("server");
        let is_expected = |labels: &String| labels == probe || labels.ends_with("=success");
        assert!(outcomes.keys().all(is_expected), "{outcomes:?}");
        assert_eq!(admission.throttled(), 0, "{options}");
        let events = log.server_events();
        let loud: Vec<_> = events.iter().filter(|event| event.level < Level::DEBUG).collect();
        assert!(loud.is_empty(), "{options}: {loud:?}");
        if has_header {
            let spans = log.server_spans();
            let addr = spans.iter().find_map(|span| span.fields.get("network.peer.address"));
            assert_eq!(addr.unwrap(), BALANCER);
        }
        running.abort();
    }
}

/// HAProxy passes TLS through. Its health checks end before TLS begins.
#[tokio::test]
#[ignore = "needs haproxy"]
async fn tls_after_the_header() {
    let (acceptor, connector) = tls();
    for options in ["send-proxy check inter 10ms", "send-proxy-v2 check inter 10ms"] {
        let admission = strict();
        let acceptor = acceptor.clone();
        let layer = ChallengeLayer::new(server().require_channel_binding())
            .admission(admission.clone())
            .prepare(trusted())
            .then_prepare(move |connection: Proxied<Tcp>| acceptor.accept(connection));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (on_error, mut errors) = report_kinds();
        let mut incoming = Incoming::builder(listener, layer).on_error(on_error).start().unwrap();
        let haproxy = HaProxy::start(*incoming.local_addr(), options).await;
        for source in ["127.0.0.2", "127.0.0.3"] {
            let io = connect_from(source, haproxy.addr).await;
            let from = io.local_addr().unwrap();
            let io = connect_tls(&connector, io).await.unwrap();
            let connector = Connector::new(client().require_channel_binding());
            let (stream, accepted) = tokio::join!(connector.connect(io), incoming.accept_with_addr());
            stream.unwrap();
            assert_eq!(accepted.unwrap().1, from);
        }
        for _ in 0..20 {
            assert_eq!(errors.recv().await.unwrap(), HandshakeErrorKind::Probe, "{options}");
        }
        assert_eq!(admission.throttled(), 0);
    }
}

#[tokio::test]
#[ignore = "needs haproxy"]
async fn axum_handlers_receive_the_client_address() {
    let incoming =
        Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer(&strict())).start();
    let incoming = incoming.unwrap();
    let haproxy = HaProxy::start(*incoming.local_addr(), "send-proxy-v2").await;
    serve_axum(incoming);
    let io = connect_from("127.0.0.2", haproxy.addr).await;
    let from = io.local_addr().unwrap();
    let stream = Connector::new(client()).connect(io).await.unwrap();
    assert_eq!(http_get(stream).await, format!("hello alice from {from}"));
}

fn serve_axum(incoming: Incoming<Proxied<Tcp>, mutual::Peer>) {
    let app =
        Router::new().route("/", get(greet)).into_make_service_with_connect_info::<PeerInfo<mutual::Peer>>();
    tokio::spawn(axum::serve(incoming, app).into_future());
}

/// Connects like a load balancer, with this header.
async fn balanced(addr: SocketAddr, header: &str) -> TcpStream {
    let mut io = connect_from(BALANCER, addr).await;
    io.write_all(header.as_bytes()).await.unwrap();
    io
}

const HEADER: &str = "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n";

#[tokio::test]
async fn peer_info_has_the_address_in_the_header() {
    let listen = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let incoming = Incoming::builder(listen().await, layer(&strict())).start().unwrap();
    let addr = *incoming.local_addr();
    serve_axum(incoming);
    for (header, from) in [(HEADER, "192.0.2.1:4711"), ("PROXY UNKNOWN\r\n", BALANCER)] {
        let stream = Connector::new(client()).connect(balanced(addr, header).await).await.unwrap();
        let greeting = http_get(stream).await;
        assert!(greeting.starts_with(&format!("hello alice from {from}")), "{greeting}");
    }

    let incoming = Incoming::builder(listen().await, layer(&strict())).start().unwrap();
    let addr = *incoming.local_addr();
    let (seen, mut peers) = mpsc::unbounded_channel();
    let authorize = InterceptorLayer::new(move |request: Request<()>| {
        let info = request.extensions().get::<PeerInfo<mutual::Peer>>();
        let PeerInfo { addr, .. } = info.ok_or_else(|| Status::internal("no PeerInfo of this type"))?;
        seen.send(*addr).unwrap();
        Ok(request)
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let router = transport::Server::builder().layer(authorize).add_service(health);
    tokio::spawn(router.serve_with_incoming(incoming));
    for (header, from) in [(HEADER, "192.0.2.1"), ("PROXY UNKNOWN\r\n", BALANCER)] {
        let connector = ServiceBuilder::new()
            .layer(HyperAnswerLayer::new(AnswerLayer::new(client())))
            .map_response(TokioIo::new)
            .service_fn(move |_: Uri| async move { io::Result::Ok(balanced(addr, header).await) });
        let channel = Endpoint::from_static("http://health").connect_with_connector(connector).await.unwrap();
        assert_eq!(check(channel).await, ServingStatus::Serving);
        assert_eq!(peers.recv().await.unwrap().ip().to_string(), from);
    }
}

/// The address of the load balancer is recorded only if no other one is known at the end: a field that is set twice is
/// printed twice by some subscribers.
#[tokio::test]
async fn span_has_the_client_address() {
    let (log, _capture) = Log::start();
    let (acceptor, _) = tls();
    let layer = ChallengeLayer::new(server())
        .timeout(Duration::from_millis(100))
        .prepare(trusted())
        .then_prepare(move |connection: Proxied<Tcp>| acceptor.accept(connection));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (report, mut errors) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(listener, layer).on_error(move |error| report.send(error).unwrap_or(()));
    let incoming = incoming.start().unwrap();
    for (sent, expected) in [
        // The client fails in TLS.
        (format!("{HEADER}GET / HTTP/1.1\r\n\r\n"), "192.0.2.1"),
        ("PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n\r\n".to_owned(), BALANCER),
        // The load balancer fails to send a header.
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), BALANCER),
        (String::new(), BALANCER),
    ] {
        let _io = balanced(*incoming.local_addr(), &sent).await;
        errors.recv().await.unwrap();
        let failed = log.server_events_with("handshake failed").pop().unwrap();
        let span = log.server_spans().into_iter().find(|span| Some(span.id) == failed.span).unwrap();
        assert_eq!(span.fields["network.peer.address"], expected, "{sent:?}");
        assert_eq!(span.fields["network.type"], "ipv4");
    }
}
