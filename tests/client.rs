//! The client's layer over mocked connectors, and the errors of clients that a server rejects over TCP.
#![cfg(feature = "net")]

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::HandshakeErrorKind::{KeySource, Malformed, Refused, TimedOut, UnexpectedEof};
use tower_challenge::{AnswerLayer, ConnectError, HandshakeError, HandshakeErrorKind, one_way};

use crate::support::{REFUSED, acceptor, connector, key};

fn layer() -> AnswerLayer<tower_challenge::Connector<one_way::Client>> {
    AnswerLayer::from_connector(connector("key"))
}

#[tokio::test]
async fn forwards_readiness_and_runs_the_handshake_on_the_response() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<&str, DuplexStream, _>(layer());
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());

    let response = tokio::spawn(service.call("target"));
    let (target, respond) = handle.next_request().await.unwrap();
    assert_eq!(target, "target");
    let (client, server) = duplex(64);
    respond.send_response(client);
    acceptor(&["key"]).accept(server).await.unwrap();
    response.await.unwrap().unwrap();
}

#[tokio::test]
async fn error_of_the_inner_connector_is_connect() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<&str, DuplexStream, _>(layer());
    assert_ready_ok!(service.poll_ready());
    let response = tokio::spawn(service.call("target"));
    handle.next_request().await.unwrap().1.send_error("unreachable");
    let error = response.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "unreachable", "`Display` shows the cause");
    assert!(matches!(&error, ConnectError::Connect(e) if e.to_string() == "unreachable"));
}

#[tokio::test(start_paused = true)]
async fn connector_fn_chooses_key_and_deadline_by_target() {
    let connectors = HashMap::from([
        ("a", connector("key of a")),
        ("b", connector("key of b")),
        ("slow", connector("key of slow").timeout(Duration::from_secs(1))),
    ]);
    let layer = AnswerLayer::with_connector_fn(move |target: &&str| {
        connectors.get(target).cloned().ok_or_else(|| format!("no key for {target}"))
    });
    let service = ServiceBuilder::new().layer(layer).service_fn(|target: &'static str| async move {
        assert_ne!(target, "unknown", "no connection is made without a key");
        let (client, server) = duplex(64);
        tokio::spawn(async move {
            if target == "slow" {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            acceptor(&[&format!("key of {target}")]).accept(server).await
        });
        Ok::<_, io::Error>(client)
    });
    service.clone().oneshot("a").await.unwrap();
    service.clone().oneshot("b").await.unwrap();
    let begin = tokio::time::Instant::now();
    let kind = |error| match error {
        ConnectError::Handshake(error) => error.kind(),
        other => panic!("{other}"),
    };
    assert_eq!(kind(service.clone().oneshot("slow").await.unwrap_err()), TimedOut);
    assert_eq!(begin.elapsed(), Duration::from_secs(1));
    let error = service.oneshot("unknown").await.unwrap_err();
    assert_eq!(error.to_string(), "no key available for the handshake: no key for unknown");
    assert_eq!(HandshakeError::find_in(&error).unwrap().get_ref().unwrap().to_string(), "no key for unknown");
    assert_eq!(kind(error), KeySource);
}

/// Connects over TCP to `server`, which does not complete the handshake, and returns the client's error.
async fn rejection<F: Future<Output = ()> + Send>(
    server: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> HandshakeErrorKind {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { server(listener.accept().await.unwrap().0).await });
    let service = ServiceBuilder::new().layer(layer()).service_fn(TcpStream::connect::<std::net::SocketAddr>);
    let error = service.oneshot(addr).await.unwrap_err();
    server.await.unwrap();
    match error {
        ConnectError::Handshake(error) => error.kind(),
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn rejections_have_different_kinds() {
    let refused = |mut io: TcpStream| async move {
        acceptor(&["another"]).accept(&mut io).await.unwrap_err();
    };
    assert_eq!(rejection(refused).await, Refused);

    let closed = |mut io: TcpStream| async move {
        io.write_all(&[7; 32]).await.unwrap();
        io.read_exact(&mut [0; 16]).await.unwrap();
    };
    assert_eq!(rejection(closed).await, UnexpectedEof);

    let reset = |io: TcpStream| async move {
        io.set_zero_linger().unwrap();
    };
    assert_eq!(rejection(reset).await, UnexpectedEof);

    let another_wire = |mut io: TcpStream| async move {
        io.write_all(b"SSH-2.0-OpenSSH_9.9 and whatever else it might have to say\r\n").await.unwrap();
        let _ = io.read_to_end(&mut Vec::new()).await;
    };
    assert_eq!(rejection(another_wire).await, Malformed);

    // Refuses before it has read anything, and closes with the answer unread: a reset follows.
    let too_busy = |mut io: TcpStream| async move {
        io.write_all(&[&[7; 32], REFUSED.as_bytes()].concat()).await.unwrap();
    };
    assert_eq!(rejection(too_busy).await, Refused);
}

#[test]
fn service_returns_the_inner_connector() {
    use tower::Layer as _;
    let mut service = AnswerLayer::new(one_way::Client::new(&key("key"))).layer(7);
    *service.get_mut() += 1;
    assert_eq!(*service.get_ref(), 8);
    assert_eq!(service.into_inner(), 8);
}
