//! Errors through tower's layers: every error type that converts into `BoxError` compiles without `map_err`, and the
//! error of a handshake is found through all wrappers.

use std::error::Error;
use std::fmt;
use std::future::ready;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tower::retry::RetryLayer;
use tower::util::BoxCloneService;
use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, AnswerLayer, BoxError, ConnectError, Connection, Connector, HandshakeError,
    HandshakeErrorKind, Key, RefusalReason, serve,
};

use super::example::Stream;
use super::{
    LONG, RetryAll, Server, assert_closed, authenticated_peer, challenge, client_of, connector, hold, leave,
    session, start,
};

static_assertions::assert_impl_all!(AcceptError: Error, Send, Sync);
static_assertions::assert_impl_all!(ConnectError: Error, Send, Sync);

/// An error type of its own, to be found by a downcast.
#[derive(Debug, PartialEq)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

async fn fails_with_io_error(_: Stream) -> io::Result<()> {
    Err(io::Error::other(Broken))
}

async fn fails_with_box_error(_: Stream) -> Result<(), BoxError> {
    Err(Broken.into())
}

async fn fails_with_anyhow_error(_: Stream) -> anyhow::Result<()> {
    Err(Broken.into())
}

async fn hold_with_box_error(stream: Stream) -> Result<(), BoxError> {
    Ok(hold(stream).await?)
}

async fn hold_with_anyhow_error(stream: Stream) -> anyhow::Result<()> {
    Ok(hold(stream).await?)
}

/// An error of a layer that prints only its own text and has the cause as its `source`.
#[derive(Debug)]
struct Layered(BoxError);

impl fmt::Display for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer failed")
    }
}

impl Error for Layered {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Awaits `serve` with `?` in front of a service, in a function with this result.
macro_rules! serve_with_question_mark {
    ($result:ty, $handler:expr) => {{
        async fn run(listener: TcpListener) -> $result {
            let service = ServiceBuilder::new().layer(challenge()).service_fn($handler);
            serve(listener, service).graceful_shutdown(ready(())).await?;
            Ok(())
        }
        run(TcpListener::bind("127.0.0.1:0").await.unwrap()).await.unwrap();
    }};
}

#[tokio::test]
async fn serve_is_awaited_with_question_mark() {
    serve_with_question_mark!(io::Result<()>, hold);
    serve_with_question_mark!(io::Result<()>, hold_with_box_error);
    serve_with_question_mark!(io::Result<()>, hold_with_anyhow_error);
    serve_with_question_mark!(Result<(), BoxError>, hold_with_box_error);
    serve_with_question_mark!(Result<(), Box<dyn Error>>, hold_with_box_error);
    serve_with_question_mark!(anyhow::Result<()>, hold_with_anyhow_error);
}

/// Starts a server for each way to put tower's layers inside the challenge.
macro_rules! layers_inside {
    ($handler:expr) => {
        [
            start(ServiceBuilder::new().layer(challenge()).service_fn($handler)).await,
            start(ServiceBuilder::new().layer(challenge()).timeout(LONG).service_fn($handler)).await,
            start(ServiceBuilder::new().layer(challenge()).buffer(1).service_fn($handler)).await,
            start(ServiceBuilder::new().layer(challenge()).load_shed().service_fn($handler)).await,
            start(
                ServiceBuilder::new().layer(challenge()).service(BoxCloneService::new(service_fn($handler))),
            )
            .await,
            start(
                ServiceBuilder::new()
                    .layer(challenge())
                    .load_shed()
                    .concurrency_limit(1)
                    .timeout(LONG)
                    .buffer(1)
                    .service(BoxCloneService::new(service_fn($handler))),
            )
            .await,
        ]
    };
}

/// Starts a server for each way to put tower's layers outside of the challenge.
macro_rules! layers_outside {
    ($handler:expr) => {
        [
            start(ServiceBuilder::new().timeout(LONG).layer(challenge()).service_fn($handler)).await,
            start(ServiceBuilder::new().buffer(1).layer(challenge()).service_fn($handler)).await,
            start(ServiceBuilder::new().load_shed().layer(challenge()).service_fn($handler)).await,
            start(BoxCloneService::new(ServiceBuilder::new().layer(challenge()).service_fn($handler))).await,
            start(BoxCloneService::new(
                ServiceBuilder::new()
                    .load_shed()
                    .concurrency_limit(8)
                    .timeout(LONG)
                    .buffer(1)
                    .layer(challenge())
                    .timeout(LONG)
                    .buffer(1)
                    .load_shed()
                    .service(BoxCloneService::new(service_fn($handler))),
            ))
            .await,
        ]
    };
}

#[tokio::test]
async fn handler_errors_compile_inside_every_layer() {
    let all = layers_inside!(hold)
        .into_iter()
        .chain(layers_inside!(hold_with_box_error))
        .chain(layers_inside!(hold_with_anyhow_error));
    for server in all {
        leave(session(server.addr).await).await;
    }
}

#[tokio::test]
async fn handler_errors_compile_outside_every_layer() {
    let all = layers_outside!(hold)
        .into_iter()
        .chain(layers_outside!(hold_with_box_error))
        .chain(layers_outside!(hold_with_anyhow_error));
    for server in all {
        leave(session(server.addr).await).await;
    }
}

/// Connects, and returns the error of the session.
async fn service_error(server: &mut Server) -> BoxError {
    assert_closed(authenticated_peer(server.addr).await.unwrap()).await;
    let error: AcceptError = server.failed().await;
    assert_eq!(error.to_string(), "broken", "the text of the handler's error");
    let AcceptError::Service(error) = error else { panic!("{error}") };
    error
}

#[tokio::test]
async fn handler_error_passes_through_every_layer() {
    for mut server in layers_inside!(fails_with_io_error) {
        let error = service_error(&mut server).await;
        let error: &io::Error = error.downcast_ref().expect("the handler's error type");
        assert!(error.get_ref().unwrap().is::<Broken>());
    }
    for mut server in layers_inside!(fails_with_box_error) {
        assert!(service_error(&mut server).await.is::<Broken>());
    }
    for mut server in layers_inside!(fails_with_anyhow_error) {
        // anyhow does not support a downcast after the conversion.
        service_error(&mut server).await;
    }
}

/// Sends a proof with a wrong key.
async fn refused_peer(addr: SocketAddr) {
    let wrong = Connector::new(client_of(&Key::generate().unwrap())).timeout(LONG);
    let error = wrong.connect(TcpStream::connect(addr).await.unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), HandshakeErrorKind::Refused);
}

fn assert_refused(error: &(dyn Error + 'static)) {
    let found = HandshakeError::find_in(error).expect("the handshake failed");
    assert_eq!(found.kind(), HandshakeErrorKind::Refused);
    assert_eq!(found.refusal_reason(), Some(RefusalReason::ProofMismatch));
    assert_eq!(found.claimed_key_id().unwrap().to_string(), "alice");
}

#[tokio::test]
async fn handshake_error_is_found_outside_every_layer() {
    for mut server in layers_outside!(hold) {
        refused_peer(server.addr).await;
        let error = server.error.recv().await.unwrap();
        assert_refused(&*error);
        assert!(error.to_string().contains("the proof does not match"), "Display shows the cause: {error}");
        let error = ServeError::Connection { addr: (), error };
        assert_eq!(error.handshake_error().unwrap().kind(), HandshakeErrorKind::Refused);
    }
}

#[tokio::test]
async fn handshake_error_is_found_in_errors_of_other_types() {
    let challenge = ServiceBuilder::new().layer(challenge()).service_fn(hold);
    let wrapped = [
        start(challenge.clone().map_err(io::Error::other)).await,
        start(challenge.clone().map_err(|error| Layered(error.into()))).await,
        start(challenge.clone().map_err(|error| Layered(io::Error::other(Layered(error.into())).into())))
            .await,
        start(challenge.clone().map_err(|error| anyhow::Error::new(error).context("session"))).await,
        start(ServiceBuilder::new().buffer(1).map_err(io::Error::other).timeout(LONG).service(challenge))
            .await,
    ];
    for mut server in wrapped {
        refused_peer(server.addr).await;
        assert_refused(&*server.error.recv().await.unwrap());
    }
}

async fn connect_with_io_error(addr: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect(addr).await
}

async fn connect_with_box_error(addr: SocketAddr) -> Result<TcpStream, BoxError> {
    Ok(TcpStream::connect(addr).await?)
}

async fn connect_with_anyhow_error(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    Ok(TcpStream::connect(addr).await?)
}

/// Boxes a connector with each of tower's layers inside and outside of the handshake.
macro_rules! connectors {
    ($connector:expr, $connect:expr) => {{
        let layer = AnswerLayer::from_connector($connector);
        let boxed = BoxCloneService::new(service_fn($connect));
        let once = || RetryLayer::new(RetryAll { left: 1, clone: |addr: &SocketAddr| Some(*addr) });
        let inside: [BoxCloneService<_, _, ConnectError>; 5] = [
            BoxCloneService::new(ServiceBuilder::new().layer(layer.clone()).service(boxed.clone())),
            BoxCloneService::new(
                ServiceBuilder::new().layer(layer.clone()).timeout(LONG).service_fn($connect),
            ),
            BoxCloneService::new(ServiceBuilder::new().layer(layer.clone()).buffer(1).service_fn($connect)),
            BoxCloneService::new(ServiceBuilder::new().layer(layer.clone()).load_shed().service_fn($connect)),
            BoxCloneService::new(
                ServiceBuilder::new()
                    .layer(layer.clone())
                    .load_shed()
                    .concurrency_limit(1)
                    .timeout(LONG)
                    .buffer(1)
                    .service(boxed.clone()),
            ),
        ];
        let outside: [BoxCloneService<_, _, BoxError>; 5] = [
            BoxCloneService::new(
                ServiceBuilder::new().timeout(LONG).layer(layer.clone()).service_fn($connect),
            ),
            BoxCloneService::new(ServiceBuilder::new().buffer(1).layer(layer.clone()).service_fn($connect)),
            BoxCloneService::new(ServiceBuilder::new().load_shed().layer(layer.clone()).service_fn($connect)),
            BoxCloneService::new(
                ServiceBuilder::new().timeout(LONG).layer(once()).layer(layer.clone()).service_fn($connect),
            ),
            BoxCloneService::new(
                ServiceBuilder::new()
                    .load_shed()
                    .concurrency_limit(1)
                    .timeout(LONG)
                    .buffer(1)
                    .layer(layer)
                    .timeout(LONG)
                    .service(boxed),
            ),
        ];
        let inside = inside.into_iter().map(|connector| connector.map_err(BoxError::from));
        inside.map(BoxCloneService::new).chain(outside)
    }};
}

#[tokio::test]
async fn connector_errors_compile_in_every_layer() {
    let server = start(ServiceBuilder::new().layer(challenge()).service_fn(hold)).await;
    let all = connectors!(connector(), connect_with_io_error)
        .chain(connectors!(connector(), connect_with_box_error))
        .chain(connectors!(connector(), connect_with_anyhow_error));
    for connector in all {
        leave(super::greeted(connector.oneshot(server.addr).await.unwrap()).await).await;
    }
}

#[tokio::test]
async fn handshake_error_of_client_is_found_outside_every_layer() {
    let server = start(ServiceBuilder::new().layer(challenge()).service_fn(hold)).await;
    let wrong = || Connector::new(client_of(&Key::generate().unwrap())).timeout(LONG);
    let all = connectors!(wrong(), connect_with_io_error)
        .chain(connectors!(wrong(), connect_with_box_error))
        .chain(connectors!(wrong(), connect_with_anyhow_error));
    for connector in all {
        let error = connector.oneshot(server.addr).await.unwrap_err();
        let found = HandshakeError::find_in(&*error).expect("the handshake failed");
        assert_eq!(found.kind(), HandshakeErrorKind::Refused);
        assert_eq!(found.refusal_reason(), None, "the client does not learn the reason");
        assert_eq!(error.to_string(), "handshake refused");
    }
}

#[tokio::test]
async fn connection_error_of_client_shows_its_cause() {
    // Bound and closed, so that nothing listens there.
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let expected = TcpStream::connect(addr).await.unwrap_err().to_string();
    let all = connectors!(connector(), connect_with_io_error)
        .chain(connectors!(connector(), connect_with_box_error))
        .chain(connectors!(connector(), connect_with_anyhow_error));
    for connector in all {
        let error = connector.oneshot(addr).await.unwrap_err();
        assert!(HandshakeError::find_in(&*error).is_none());
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
}

/// The error of `poll_ready` ends the server, with the text of the service's error.
#[tokio::test]
async fn readiness_error_ends_serve() {
    struct NeverReady;

    impl Service<Connection<TcpStream>> for NeverReady {
        type Response = ();
        type Error = anyhow::Error;
        type Future = std::future::Ready<anyhow::Result<()>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<anyhow::Result<()>> {
            std::task::Poll::Ready(Err(Broken.into()))
        }

        fn call(&mut self, _: Connection<TcpStream>) -> Self::Future {
            unreachable!("never ready")
        }
    }

    impl Clone for NeverReady {
        fn clone(&self) -> Self {
            Self
        }
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = serve(listener, NeverReady).await.unwrap_err();
    assert_eq!(error.to_string(), "broken");
}
