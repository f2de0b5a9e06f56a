//! The pulled form: handshakes side by side, a bounded queue, nothing lost and nothing left behind.
#![cfg(feature = "net")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use support::{answer_by_hand, connector, read_array, read_verdict, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tower_challenge::incoming::IncomingBuilder;
use tower_challenge::{Authenticated, ChallengeLayer, Connection, Identity, Incoming, one_way};

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
async fn a_slow_stranger_delays_nobody() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    let _silent = TcpStream::connect(addr).await.unwrap();
    let mut client = connect(addr, "a").await;
    let stream = incoming.accept().await.unwrap();
    assert_eq!(stream.peer().key_id(), &"a");
    assert_eq!(*stream.get_ref().addr(), client.local_addr().unwrap());
    assert_eq!(read_verdict(&mut client).await, support::ACCEPTED);
}

#[tokio::test]
async fn handshakes_go_on_while_nobody_pulls_and_an_abandoned_accept_loses_nothing() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    assert!(timeout(Duration::from_millis(20), incoming.accept()).await.is_err());
    let mut clients = Vec::new();
    for key in ["a", "b", "c"] {
        let mut client = connect(addr, key).await;
        assert_eq!(read_verdict(&mut client).await, support::ACCEPTED);
        clients.push(client);
    }
    let mut refused = connect(addr, "wrong").await;
    assert_eq!(read_verdict(&mut refused).await, support::REFUSED);

    let mut ids = Vec::new();
    while ids.len() < 3 {
        // Polled once and dropped, again and again.
        if let Some(stream) = futures::FutureExt::now_or_never(incoming.accept()) {
            ids.push(stream.unwrap().peer().key_id().to_string());
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn as_a_stream_and_as_a_listener() {
    let mut incoming = builder().await.start().unwrap();
    let addr = incoming.local_addr().to_owned();
    let _first = connect(addr, "a").await;
    assert_eq!(incoming.next().await.unwrap().unwrap().peer().key_id(), &"a");

    let second = connect(addr, "b").await;
    let (stream, from) = tokio_util::net::Listener::accept(&mut incoming).await.unwrap();
    assert_eq!((stream.peer().key_id(), from), (&"b".parse().unwrap(), second.local_addr().unwrap()));

    // A listener is a listener: `serve` takes this one too, whose connections are authenticated when they are accepted.
    let service = tower::service_fn(
        |mut connection: Connection<Authenticated<Connection<TcpStream>, Identity>>| async move {
            let greeting = format!("hello {}", connection.get_ref().peer().key_id());
            connection.write_all(greeting.as_bytes()).await
        },
    );
    let server = tokio::spawn(tower_challenge::serve(incoming, service).into_future());
    let client = connector("c").connect(TcpStream::connect(addr).await.unwrap()).await;
    let mut said = String::new();
    client.unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello c");
    server.abort();
}

/// One waits, and while it does nothing more is accepted: the next ones are in the kernel's queue, unchallenged.
#[tokio::test]
async fn no_more_are_accepted_than_have_room_to_wait() {
    let mut incoming = builder().await.capacity(1).start().unwrap();
    let addr = *incoming.local_addr();
    let mut first = connect(addr, "a").await;
    assert_eq!(read_verdict(&mut first).await, support::ACCEPTED);
    // Whether a second one is accepted before the first has taken the room is a race; a third one is not.
    sleep(Duration::from_millis(50)).await;
    let mut second = TcpStream::connect(addr).await.unwrap();
    assert!(timeout(Duration::from_millis(100), second.read(&mut [0])).await.is_err(), "not challenged");
    assert_eq!(incoming.accept().await.unwrap().peer().key_id(), &"a");
    answer_by_hand(&mut second, "b").await;
    assert_eq!(incoming.accept().await.unwrap().peer().key_id(), &"b");
}

#[tokio::test]
async fn what_waits_too_long_is_closed() {
    let layer =
        ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).ready_timeout(Duration::from_millis(50));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (told, mut tell) = mpsc::unbounded_channel();
    let mut incoming = Incoming::builder(listener, layer)
        .capacity(1)
        .on_error(move |error| told.send(error.to_string()).unwrap())
        .start()
        .unwrap();
    let addr = *incoming.local_addr();
    // Two are challenged while there is room for one: the second to finish has to wait.
    let (mut first, mut second) =
        (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
    let nonces = (read_array::<32>(&mut first).await, read_array::<32>(&mut second).await);
    first.write_all(&support::hmac_md5(b"key", &nonces.0)).await.unwrap();
    assert_eq!(read_verdict(&mut first).await, support::ACCEPTED);
    sleep(Duration::from_millis(20)).await;
    second.write_all(&support::hmac_md5(b"key", &nonces.1)).await.unwrap();
    assert_eq!(read_verdict(&mut second).await, support::ACCEPTED);
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
    incoming.accept().await.unwrap();
    let said = tell.recv().await.unwrap();
    assert!(said.ends_with("the service was not ready in time for an authenticated peer"), "{said}");
}

#[tokio::test]
async fn dropping_it_closes_the_listener_and_what_is_pending_and_nothing_else() {
    let mut incoming = builder().await.start().unwrap();
    let addr = *incoming.local_addr();
    let mut pulled = connect(addr, "a").await;
    let mut stream = incoming.accept().await.unwrap();
    let mut waiting = connect(addr, "b").await;
    assert_eq!(read_verdict(&mut waiting).await, support::ACCEPTED);
    let mut pending = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut pending).await;

    drop(incoming);
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(waiting.read(&mut [0]).await.unwrap(), 0);
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens");
    assert_eq!(read_verdict(&mut pulled).await, support::ACCEPTED);
    assert!(stream.shutdown_token().unwrap().is_cancelled(), "but it can see that it is time");
    stream.write_all(b"still here").await.unwrap();
    assert_eq!(&read_array::<10>(&mut pulled).await, b"still here");
}

#[tokio::test]
async fn after_the_signal_what_waits_can_still_be_pulled_and_what_was_pulled_is_waited_for() {
    let (stop, stopped) = oneshot::channel::<()>();
    let builder = builder().await.with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let mut incoming = builder.start().unwrap();
    let addr = *incoming.local_addr();
    let ended = tokio::spawn(incoming.ended());
    let mut clients = Vec::new();
    for key in ["a", "b"] {
        let mut client = connect(addr, key).await;
        assert_eq!(read_verdict(&mut client).await, support::ACCEPTED);
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

    assert!(!ended.is_finished());
    drop((first, second));
    let shutdown = ended.await.unwrap().unwrap();
    assert_eq!((shutdown.failed, shutdown.aborted, shutdown.detached), (1, 0, 0));
}

#[tokio::test]
async fn a_second_signal_or_the_deadline_does_not_wait_for_what_was_pulled() {
    for deadline in [false, true] {
        let (forced, force) = oneshot::channel::<()>();
        let builder = builder().await.with_forced_shutdown(async { force.await.unwrap_or_default() });
        let timeout = if deadline { Duration::from_millis(20) } else { Duration::from_secs(3600) };
        let mut incoming = builder.shutdown_timeout(timeout).start().unwrap();
        let _client = connect(*incoming.local_addr(), "a").await;
        let mut pulled = incoming.accept().await.unwrap();
        let ended = incoming.ended();
        drop(incoming);
        if !deadline {
            forced.send(()).unwrap();
        }
        assert_eq!(ended.await.unwrap().detached, 1);
        pulled.write_all(b"still here").await.unwrap();
    }
}

#[tokio::test]
async fn what_was_pulled_counts_for_the_total() {
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

/// As a listener it has no end, and no error that somebody's loop would tell again and again.
#[tokio::test(start_paused = true)]
async fn as_a_listener_it_is_silent_after_a_shutdown() {
    let builder = builder().await.with_graceful_shutdown(sleep(Duration::from_millis(10)));
    let incoming = builder.start().unwrap();
    let (told, mut tell) = mpsc::unbounded_channel();
    let service = tower::service_fn(|_: Connection<Authenticated<Connection<TcpStream>, Identity>>| async {
        Ok::<_, std::io::Error>(())
    });
    let server = tower_challenge::serve(incoming, service)
        .with_graceful_shutdown(sleep(Duration::from_secs(60)))
        .on_error(move |error| told.send(error.to_string()).unwrap());
    server.await.unwrap();
    assert_eq!(tell.recv().await, None);
}
