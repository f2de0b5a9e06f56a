//! `Incoming`: concurrent handshakes, a bounded queue, and a shutdown that loses no connection.
#![cfg(feature = "net")]

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tower_challenge::incoming::IncomingBuilder;
use tower_challenge::{Authenticated, ChallengeLayer, Connection, Identity, Incoming, one_way};

use crate::support::{
    ACCEPTED, REFUSED, answer_by_hand, connector, hmac_md5, read_array, read_verdict, ring,
};

async fn builder() -> IncomingBuilder<TcpListener, one_way::Server> {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["a", "b", "c"])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Incoming::builder(listener, layer)
}

async fn connect(addr: SocketAddr, key: &str) -> TcpStream {
    let mut client = TcpStream::connect(addr).await.unwrap();
    answer_by_hand(&mut client, key).await;
    client
}

#[tokio::test]
async fn silent_peer_does_not_delay_other_peers() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    let _silent = TcpStream::connect(addr).await.unwrap();
    let mut client = connect(addr, "a").await;
    let stream = incoming.accept().await.unwrap();
    assert_eq!(stream.peer().key_id(), &"a");
    assert_eq!(*stream.get_ref().addr(), client.local_addr().unwrap());
    assert_eq!(read_verdict(&mut client).await, ACCEPTED);
}

#[tokio::test]
async fn handshakes_run_without_accept_and_a_cancelled_accept_loses_nothing() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    assert!(timeout(Duration::from_millis(20), incoming.accept()).await.is_err());
    let mut clients = Vec::new();
    for key in ["a", "b", "c"] {
        let mut client = connect(addr, key).await;
        assert_eq!(read_verdict(&mut client).await, ACCEPTED);
        clients.push(client);
    }
    let mut refused = connect(addr, "wrong").await;
    assert_eq!(read_verdict(&mut refused).await, REFUSED);

    let mut ids = Vec::new();
    while ids.len() < 3 {
        // Each `accept` is polled once and dropped.
        if let Some(stream) = futures::FutureExt::now_or_never(incoming.accept()) {
            ids.push(stream.unwrap().peer().key_id().to_string());
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn is_a_stream_and_a_listener() {
    let mut incoming = builder().await.start().unwrap();
    let addr = incoming.local_addr().to_owned();
    let _first = connect(addr, "a").await;
    assert_eq!(incoming.next().await.unwrap().unwrap().peer().key_id(), &"a");

    let second = connect(addr, "b").await;
    let (stream, from) = tokio_util::net::Listener::accept(&mut incoming).await.unwrap();
    assert_eq!((stream.peer().key_id(), from), (&"b".parse().unwrap(), second.local_addr().unwrap()));

    // `serve` accepts it like any other listener. The connections are authenticated already.
    let service = tower::service_fn(
        |mut connection: Connection<Authenticated<Connection<TcpStream>, Identity>>| async move {
            let greeting = format!("hello {}", connection.get_ref().peer().key_id());
            connection.write_all(greeting.as_bytes()).await
        },
    );
    let server = tokio::spawn(tower_challenge::serve(incoming, service).into_future());
    let client = connector("c").connect(TcpStream::connect(addr).await.unwrap()).await;
    let mut greeting = String::new();
    client.unwrap().read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "hello c");
    server.abort();
}

/// While the queue is full, nothing is accepted: further connections wait in the kernel's queue, unchallenged.
#[tokio::test]
async fn full_queue_stops_accepting() {
    let mut incoming = builder().await.capacity(1).start().unwrap();
    let addr = *incoming.local_addr();
    let mut first = connect(addr, "a").await;
    assert_eq!(read_verdict(&mut first).await, ACCEPTED);
    // A second connection could be accepted before the first one has filled the queue, so this waits for that.
    sleep(Duration::from_millis(50)).await;
    let mut second = TcpStream::connect(addr).await.unwrap();
    assert!(timeout(Duration::from_millis(100), second.read(&mut [0])).await.is_err(), "not challenged");
    assert_eq!(incoming.accept().await.unwrap().peer().key_id(), &"a");
    answer_by_hand(&mut second, "b").await;
    assert_eq!(incoming.accept().await.unwrap().peer().key_id(), &"b");
}

#[tokio::test]
async fn connection_that_waits_too_long_is_closed() {
    let layer =
        ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).ready_timeout(Duration::from_millis(50));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (report, mut reports) = mpsc::unbounded_channel();
    let mut incoming = Incoming::builder(listener, layer)
        .capacity(1)
        .on_error(move |error| report.send(error.to_string()).unwrap())
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    // Two peers are challenged while there is room for one, so the second to finish has to wait.
    let (mut first, mut second) =
        (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
    let nonces = (read_array::<32>(&mut first).await, read_array::<32>(&mut second).await);
    first.write_all(&hmac_md5(b"key", &nonces.0)).await.unwrap();
    assert_eq!(read_verdict(&mut first).await, ACCEPTED);
    sleep(Duration::from_millis(20)).await;
    second.write_all(&hmac_md5(b"key", &nonces.1)).await.unwrap();
    assert_eq!(read_verdict(&mut second).await, ACCEPTED);
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
    incoming.accept().await.unwrap();
    let error = reports.recv().await.unwrap();
    assert!(error.ends_with("the service was not ready in time for an authenticated peer"), "{error}");
}

#[tokio::test]
async fn drop_closes_listener_handshakes_and_queue_but_no_accepted_connection() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    let mut pulled = connect(addr, "a").await;
    let mut stream = incoming.accept().await.unwrap();
    let mut waiting = connect(addr, "b").await;
    assert_eq!(read_verdict(&mut waiting).await, ACCEPTED);
    let mut pending = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut pending).await;

    drop(incoming);
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(waiting.read(&mut [0]).await.unwrap(), 0);
    assert!(TcpStream::connect(addr).await.is_err(), "the listener is closed");
    assert_eq!(read_verdict(&mut pulled).await, ACCEPTED);
    assert!(stream.shutdown_token().unwrap().is_cancelled(), "the session can observe the shutdown");
    stream.write_all(b"still here").await.unwrap();
    assert_eq!(&read_array::<10>(&mut pulled).await, b"still here");
}

#[tokio::test]
async fn graceful_shutdown_delivers_the_queue_and_waits_for_accepted_connections() {
    let (stop, stopped) = oneshot::channel::<()>();
    let builder = builder().await.graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let mut incoming = builder.start().unwrap();
    let addr = *incoming.local_addr();
    let closed = tokio::spawn(incoming.closed());
    let mut clients = Vec::new();
    for key in ["a", "b"] {
        let mut client = connect(addr, key).await;
        assert_eq!(read_verdict(&mut client).await, ACCEPTED);
        clients.push(client);
    }
    let mut pending = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut pending).await;
    let first = incoming.accept().await.unwrap();

    stop.send(()).unwrap();
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0, "ended at once");
    first.shutdown_token().unwrap().cancelled().await;
    let second = incoming.accept().await.unwrap();
    assert_eq!(
        (first.peer().key_id(), second.peer().key_id()),
        (&"a".parse().unwrap(), &"b".parse().unwrap())
    );
    assert!(incoming.accept().await.is_err(), "there are no more");
    assert!(incoming.next().await.is_none());

    assert!(!closed.is_finished());
    drop((first, second));
    let shutdown = closed.await.unwrap().unwrap();
    assert_eq!((shutdown.failed, shutdown.aborted, shutdown.detached), (1, 0, 0));
}

#[tokio::test]
async fn forced_shutdown_and_shutdown_timeout_do_not_wait_for_accepted_connections() {
    for deadline in [false, true] {
        let (forced, force) = oneshot::channel::<()>();
        let builder = builder().await.forced_shutdown(async { force.await.unwrap_or_default() });
        let timeout = if deadline { Duration::from_millis(20) } else { Duration::from_secs(3600) };
        let mut incoming = builder.shutdown_timeout(timeout).start().unwrap();
        let _client = connect(*incoming.local_addr(), "a").await;
        let mut pulled = incoming.accept().await.unwrap();
        let closed = incoming.closed();
        drop(incoming);
        if !deadline {
            forced.send(()).unwrap();
        }
        assert_eq!(closed.await.unwrap().detached, 1);
        pulled.write_all(b"still here").await.unwrap();
    }
}

#[tokio::test]
async fn accepted_connection_counts_for_max_connections() {
    let mut incoming = builder().await.max_connections(1).start().unwrap();
    let addr = *incoming.local_addr();
    let _first = connect(addr, "a").await;
    let pulled = incoming.accept().await.unwrap();
    let mut second = TcpStream::connect(addr).await.unwrap();
    assert!(timeout(Duration::from_millis(50), second.read(&mut [0])).await.is_err(), "not challenged");
    drop(pulled);
    answer_by_hand(&mut second, "b").await;
    assert_eq!(incoming.accept().await.unwrap().peer().key_id(), &"b");
}

/// The `Listener` neither ends nor fails, since an accept loop would report the same error again and again.
#[tokio::test(start_paused = true)]
async fn listener_is_pending_after_shutdown() {
    let builder = builder().await.graceful_shutdown(sleep(Duration::from_millis(10)));
    let incoming = builder.start().unwrap();
    let (report, mut reports) = mpsc::unbounded_channel();
    let service = tower::service_fn(|_: Connection<Authenticated<Connection<TcpStream>, Identity>>| async {
        Ok::<_, std::io::Error>(())
    });
    let server = tower_challenge::serve(incoming, service)
        .graceful_shutdown(sleep(Duration::from_secs(60)))
        .on_error(move |error| report.send(error.to_string()).unwrap());
    server.await.unwrap();
    assert_eq!(reports.recv().await, None);
}

#[tokio::test]
async fn limits_of_zero_are_errors_of_start() {
    for builder in [builder().await.capacity(0), builder().await.max_connections(0)] {
        let error = builder.start().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("is 0"), "{error}");
    }
}
