//! The accept loop, over real sockets: tasks of their own, errors survived, shutdown.
#![cfg(feature = "net")]

mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use support::{answer_by_hand, connector, read_array, read_verdict, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::net::Listener;
use tower::ServiceBuilder;
use tower_challenge::serve::{ServeError, Shutdown};
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, HandshakeErrorKind, Identity, one_way, serve,
};

type Stream<IO = TcpStream, A = SocketAddr> = Authenticated<Connection<IO, A>, Identity>;

fn layer() -> ChallengeLayer<one_way::Server> {
    ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
}

/// Echoes, unless it is told to panic, to fail, or to stay.
async fn handle<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, A: Unpin>(
    mut stream: Stream<IO, A>,
) -> io::Result<()> {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            len => match &buf[..len] {
                b"panic" => panic!("as it was told"),
                b"fail" => return Err(io::Error::other("as it was told")),
                b"stay" => {
                    stream.write_all(b"staying").await?;
                    std::future::pending::<()>().await;
                }
                b"until" => {
                    stream.write_all(b"staying").await?;
                    stream.shutdown_token().expect("serve gives one").clone().cancelled().await;
                    return stream.write_all(b"over").await;
                }
                data => stream.write_all(data).await?,
            },
        }
    }
}

/// Listens for tests that play the kernel.
struct Accepts<IO>(mpsc::Receiver<io::Result<IO>>);

impl<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite> Listener for Accepts<IO> {
    type Io = IO;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(IO, ())>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(accepted.map(|io| (io, ()))),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Server {
    addr: SocketAddr,
    errors: Arc<Mutex<Vec<String>>>,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Shutdown>,
}

async fn server(shutdown_timeout: Duration) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle);
    let errors = Arc::new(Mutex::new(Vec::new()));
    let (stop, stopped) = oneshot::channel();
    let serve = serve(listener, service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .shutdown_timeout(shutdown_timeout)
        .on_error({
            let errors = Arc::clone(&errors);
            move |error| errors.lock().unwrap().push(error.to_string())
        });
    let running = tokio::spawn(async move { serve.await.unwrap() });
    Server { addr, errors, stop, running }
}

async fn connect(addr: SocketAddr) -> Authenticated<TcpStream, one_way::UnprovenServer> {
    connector("key").connect(TcpStream::connect(addr).await.unwrap()).await.unwrap()
}

async fn echo(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(&read_array::<5>(stream).await, b"hello");
}

#[tokio::test]
async fn each_connection_by_itself() {
    let server = server(Duration::from_secs(1)).await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    let mut first = connect(server.addr).await;
    echo(&mut first).await;

    // A wrong key, an error and a panic harm nobody else.
    let mut wrong = TcpStream::connect(server.addr).await.unwrap();
    answer_by_hand(&mut wrong, "wrong").await;
    assert_eq!(read_verdict(&mut wrong).await, support::REFUSED);
    let wrong_addr = wrong.local_addr().unwrap();
    drop(wrong);
    for order in ["fail", "panic"] {
        let mut stream = connect(server.addr).await;
        stream.write_all(order.as_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
    echo(&mut first).await;
    echo(&mut connect(server.addr).await).await;

    drop(first);
    server.stop.send(()).unwrap();
    server.running.await.unwrap();
    let mut errors = std::mem::take(&mut *server.errors.lock().unwrap());
    errors.sort();
    let expect = |start: &str, end: &str| {
        let at = errors.iter().position(|e| e.starts_with(start) && e.ends_with(end));
        at.unwrap_or_else(|| panic!("no {start}..{end} in {errors:#?}"));
    };
    expect(&format!("connection from {wrong_addr}: "), "handshake refused");
    expect("connection from", "the service of an authenticated peer failed");
    expect("connection from", "the service panicked: as it was told");
    expect("connection from", "shut down before the handshake was over");
    assert_eq!(errors.len(), 4, "{errors:#?}");
}

#[tokio::test]
async fn a_service_sees_the_accept_address_and_a_socket_without_delay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, mut saw) = mpsc::channel(1);
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream| {
        let seen = seen.clone();
        async move {
            let connection = stream.get_ref();
            let nodelay = connection.get_ref().nodelay()?;
            seen.send((*connection.addr(), nodelay)).await.map_err(io::Error::other)
        }
    });
    let server = tokio::spawn(serve(listener, service).into_future());
    let client = connect(addr).await;
    assert_eq!(saw.recv().await.unwrap(), (client.get_ref().local_addr().unwrap(), true));
    server.abort();
}

#[cfg(unix)]
#[tokio::test]
async fn over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let service = ServiceBuilder::new()
        .layer(layer())
        .service_fn(handle::<tokio::net::UnixStream, tokio::net::unix::SocketAddr>);
    let server = tokio::spawn(serve(listener, service).into_future());
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    echo(&mut connector("key").connect(stream).await.unwrap()).await;
    server.abort();
}

#[tokio::test]
async fn shutdown_closes_the_listener_ends_handshakes_and_waits_for_sessions() {
    let server = server(Duration::from_secs(2)).await;
    let mut pending = TcpStream::connect(server.addr).await.unwrap();
    read_array::<32>(&mut pending).await;
    let mut until = connect(server.addr).await;
    let mut stay = connect(server.addr).await;
    for (stream, order) in [(&mut until, "until"), (&mut stay, "stay")] {
        stream.write_all(order.as_bytes()).await.unwrap();
        assert_eq!(&read_array::<7>(stream).await, b"staying");
    }

    let begin = Instant::now();
    server.stop.send(()).unwrap();
    assert_eq!(pending.read(&mut [0]).await.unwrap(), 0, "ended at once");
    assert_eq!(&read_array::<4>(&mut until).await, b"over");
    assert!(begin.elapsed() < Duration::from_secs(2), "not at the deadline");
    assert!(TcpStream::connect(server.addr).await.is_err(), "nobody listens");

    let shutdown = server.running.await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!((shutdown.completed, shutdown.failed, shutdown.aborted), (1, 1, 1));
    assert_eq!((shutdown.panicked, shutdown.detached), (0, 0));
    assert_eq!(stay.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn dropping_the_server_aborts_its_connections() {
    let server = server(Duration::from_secs(60)).await;
    let mut stream = connect(server.addr).await;
    echo(&mut stream).await;
    server.running.abort();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn accept_errors_are_survived_with_pauses_that_grow_up_to_half_a_second() {
    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle::<DuplexStream, ()>);
    let (told, mut tell) = mpsc::unbounded_channel();
    let begin = Instant::now();
    let server = serve(Accepts(listener), service).on_error(move |error| {
        if let ServeError::Accept(error) = error {
            told.send((error.kind(), begin.elapsed().as_millis())).unwrap();
        }
    });
    let server = tokio::spawn(server.into_future());

    let emfile = || Err(io::Error::from_raw_os_error(24));
    for _ in 0..10 {
        accepts.send(emfile()).await.unwrap();
    }
    let mut at = Vec::new();
    for _ in 0..10 {
        at.push(tell.recv().await.unwrap().1);
    }
    assert_eq!(at, [0, 5, 15, 35, 75, 155, 315, 635, 1135, 1635]);

    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    echo(&mut connector("key").connect(client).await.unwrap()).await;
    assert!(begin.elapsed() < Duration::from_millis(2200), "back within half a second");

    // What concerns one connection alone is no reason to pause; and after a success pauses are short again.
    let before = begin.elapsed().as_millis();
    accepts.send(Err(io::ErrorKind::ConnectionAborted.into())).await.unwrap();
    accepts.send(emfile()).await.unwrap();
    accepts.send(emfile()).await.unwrap();
    assert_eq!(tell.recv().await.unwrap(), (io::ErrorKind::ConnectionAborted, before));
    assert_eq!(tell.recv().await.unwrap().1, before);
    assert_eq!(tell.recv().await.unwrap().1, before + 5);
    server.abort();
}

/// An outer layer that has no room leaves connections where they are; a challenge always has.
#[tokio::test(start_paused = true)]
async fn the_next_connection_is_accepted_when_the_service_is_ready() {
    let (accepts, listener) = mpsc::channel(64);
    let handled = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new().concurrency_limit(1).layer(layer()).service_fn({
        let handled = Arc::clone(&handled);
        move |_: Stream<DuplexStream, ()>| {
            handled.fetch_add(1, Ordering::Relaxed);
            async {
                sleep(Duration::from_secs(1)).await;
                Ok::<_, io::Error>(())
            }
        }
    });
    let server = tokio::spawn(serve(Accepts(listener), service).into_future());
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(tokio::spawn(connector("key").connect(client)));
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!((handled.load(Ordering::Relaxed), accepts.capacity()), (1, 62));
    sleep(Duration::from_secs(3)).await;
    assert_eq!((handled.load(Ordering::Relaxed), accepts.capacity()), (3, 64));
    server.abort();
}

#[tokio::test]
async fn a_service_that_can_never_be_called_again_ends_the_server_with_its_error() {
    #[derive(Clone)]
    struct Broken;

    impl tower::Service<Connection<DuplexStream, ()>> for Broken {
        type Response = ();
        type Error = AcceptError<io::Error>;
        type Future = std::future::Ready<Result<(), Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Err(AcceptError::Service(io::Error::other("broken"))))
        }

        fn call(&mut self, _: Connection<DuplexStream, ()>) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let (_accepts, listener) = mpsc::channel(1);
    let error = serve(Accepts(listener), Broken).await.unwrap_err();
    assert!(matches!(error, AcceptError::Service(error) if error.to_string() == "broken"));
}

#[tokio::test]
async fn errors_have_the_address_and_the_kind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle);
    let (told, mut tell) = mpsc::unbounded_channel();
    let server = serve(listener, service).on_error(move |error| {
        if let ServeError::Connection { addr, error: AcceptError::Handshake(error) } = error {
            told.send((addr, error.kind())).unwrap();
        }
    });
    let server = tokio::spawn(server.into_future());
    let mut client = TcpStream::connect(addr).await.unwrap();
    let from = client.local_addr().unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(tell.recv().await.unwrap(), (from, HandshakeErrorKind::ClosedEarly));
    server.abort();
}

/// Waits until so many have been seen.
async fn eventually(what: impl Fn() -> bool) {
    while !what() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn above_the_total_nobody_is_accepted_and_the_queue_is_served_in_order() {
    let (accepts, listener) = mpsc::channel(64);
    let (called, mut call) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream<DuplexStream, ()>| {
        called.send(stream).unwrap();
        std::future::ready(Ok::<_, io::Error>(()))
    });
    let server = tokio::spawn(serve(Accepts(listener), service).max_connections(2).into_future());
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(tokio::spawn(connector("key").connect(client)));
    }
    let mut sessions = vec![call.recv().await.unwrap(), call.recv().await.unwrap()];
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        accepts.capacity(),
        62,
        "two are left in the queue, though the service has returned for the others"
    );

    for client in clients.split_off(2) {
        // Who has been waiting longest is next, as soon as a stream is dropped, wherever it has got to.
        drop(sessions.remove(0));
        let mut client = client.await.unwrap().unwrap();
        let mut session = call.recv().await.unwrap();
        session.write_all(b"hi").await.unwrap();
        assert_eq!(&read_array::<2>(&mut client).await, b"hi");
        sessions.push(session);
    }
    server.abort();
}

/// A stranger takes a place of the total, and gives it back when the handshake is over, whatever comes of it.
#[tokio::test(start_paused = true)]
async fn strangers_give_their_places_back() {
    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle::<DuplexStream, ()>);
    let server = tokio::spawn(serve(Accepts(listener), service).max_connections(1).into_future());
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let (stranger, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        strangers.push(stranger);
    }
    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    let begin = Instant::now();
    let connect = connector("key").timeout(Duration::from_secs(60)).connect(client);
    echo(&mut connect.await.unwrap()).await;
    assert!((30..31).contains(&begin.elapsed().as_secs()), "three deadlines of ten seconds");
    server.abort();
}

/// How tower's own limit on the sessions goes with the total: those who wait for it have proven themselves.
#[tokio::test(start_paused = true)]
async fn a_limit_of_sessions_alone_is_the_inner_service_s() {
    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new()
        .layer(layer().ready_timeout(Duration::from_secs(5)))
        .concurrency_limit(1)
        .service_fn(handle::<DuplexStream, ()>);
    let (told, mut tell) = mpsc::unbounded_channel();
    let server = serve(Accepts(listener), service)
        .max_connections(10)
        .on_error(move |error| told.send(error.to_string()).unwrap());
    let server = tokio::spawn(server.into_future());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(connector("key").connect(client).await.unwrap());
    }
    echo(&mut clients[0]).await;
    // The second has been let in, and is not served before the first has gone: or, after a while, not at all.
    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    let third = connector("key").connect(client).await.unwrap();
    drop(clients.remove(0));
    echo(&mut clients[0]).await;
    drop(third);
    assert!(
        tell.recv().await.unwrap().ends_with("the service was not ready in time for an authenticated peer")
    );
    server.abort();
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_all_ends_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (detached, mut detach) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |mut stream: Stream| {
        let detached = detached.clone();
        async move {
            let mut buf = [0; 16];
            let len = stream.read(&mut buf).await?;
            stream.write_all(b"ok").await?;
            match &buf[..len] {
                b"detach" => detached.send(stream).map_err(|_| io::Error::other("nobody there")),
                b"stay" => std::future::pending().await,
                order => {
                    stream.shutdown_token().expect("serve gives one").clone().cancelled().await;
                    match order {
                        b"panic" => panic!("as it was told"),
                        b"fail" => Err(io::Error::other("as it was told")),
                        _ => Ok(()),
                    }
                }
            }
        }
    });
    let (first, first_signal) = oneshot::channel::<()>();
    let (second, second_signal) = oneshot::channel::<()>();
    let server = serve(listener, service)
        .with_graceful_shutdown(async { first_signal.await.unwrap_or_default() })
        .with_forced_shutdown(async { second_signal.await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(3600));
    let running = tokio::spawn(server.into_future());
    let mut pending = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut pending).await;
    let mut clients = Vec::new();
    for order in ["end", "end", "fail", "panic", "stay", "detach"] {
        let mut client = connect(addr).await;
        client.write_all(order.as_bytes()).await.unwrap();
        assert_eq!(&read_array::<2>(&mut client).await, b"ok");
        clients.push(client);
    }
    let stream = detach.recv().await.unwrap();

    first.send(()).unwrap();
    for (i, client) in clients.iter_mut().enumerate() {
        if i < 4 {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        }
    }
    assert!(stream.shutdown_token().unwrap().is_cancelled());
    assert!(!running.is_finished(), "two are still there");
    second.send(()).unwrap();
    let shutdown = running.await.unwrap().unwrap();
    let Shutdown { completed, failed, panicked, aborted, detached, .. } = shutdown;
    // The pending handshake is among those that failed; the one that detached ended before, and its stream did not.
    assert_eq!((completed, failed, panicked, aborted, detached), (2, 2, 1, 1, 1));
}

/// The second signal is not looked at before the first has come: both may wait for the same Ctrl-C.
#[tokio::test]
async fn the_second_signal_alone_does_nothing_and_a_detached_stream_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (detached, mut detach) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream| {
        std::future::ready(detached.send(stream).map_err(|_| io::Error::other("nobody there")))
    });
    let (first, first_signal) = oneshot::channel::<()>();
    let polled = Arc::new(AtomicUsize::new(0));
    let looked = Arc::clone(&polled);
    let server = serve(listener, service)
        .with_graceful_shutdown(async { first_signal.await.unwrap_or_default() })
        .with_forced_shutdown(std::future::poll_fn(move |_| {
            looked.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        }));
    let running = tokio::spawn(server.into_future());
    let _client = connect(addr).await;
    let stream = detach.recv().await.unwrap();
    assert_eq!(polled.load(Ordering::Relaxed), 0);
    first.send(()).unwrap();
    eventually(|| polled.load(Ordering::Relaxed) > 0).await;
    assert!(!running.is_finished());
    drop(stream);
    assert_eq!(running.await.unwrap().unwrap(), Shutdown::default());
}

/// A listener that always has somebody, or an error, and takes no part in tokio's budget.
struct Endless {
    error: bool,
}

impl Listener for Endless {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        let accepted =
            if self.error { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok((duplex(1).1, ())) };
        Poll::Ready(accepted)
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_flood_of_connections_or_errors_does_not_hide_the_signal() {
    for error in [false, true] {
        let service = tower::service_fn(|_: Connection<DuplexStream, ()>| async { Ok::<_, io::Error>(()) });
        let server =
            serve(Endless { error }, service).with_graceful_shutdown(sleep(Duration::from_millis(20)));
        tokio::time::timeout(Duration::from_secs(30), server.into_future()).await.expect("it ends").unwrap();
    }
}

/// Nobody is let in any more when sessions hear of it.
#[tokio::test]
async fn the_listener_is_closed_before_sessions_know() {
    /// Woken at the very moment at which the token is cancelled: is the listener gone by then?
    struct Looks {
        accepts: mpsc::Sender<io::Result<DuplexStream>>,
        found: mpsc::UnboundedSender<bool>,
    }

    impl std::task::Wake for Looks {
        fn wake(self: Arc<Self>) {
            self.found.send(self.accepts.is_closed()).unwrap();
        }
    }

    let (accepts, listener) = mpsc::channel(1);
    let (found, mut find) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let stop = Arc::new(Mutex::new(Some(stop)));
    let looks = std::task::Waker::from(Arc::new(Looks { accepts: accepts.clone(), found }));
    let service = tower::service_fn(move |connection: Connection<DuplexStream, ()>| {
        let (stop, looks) = (Arc::clone(&stop), looks.clone());
        async move {
            let mut cancelled = Box::pin(connection.shutdown_token().cancelled());
            assert!(cancelled.as_mut().poll(&mut Context::from_waker(&looks)).is_pending());
            stop.lock().unwrap().take().unwrap().send(()).unwrap();
            connection.shutdown_token().cancelled().await;
            Ok::<_, io::Error>(())
        }
    });
    let server = serve(Accepts(listener), service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .into_future();
    let server = tokio::spawn(server);
    accepts.send(Ok(duplex(1).0)).await.unwrap();
    assert!(find.recv().await.unwrap(), "the listener is still there");
    server.await.unwrap().unwrap();
}

/// Who has proven itself and waits for the service begins no session that is to end at once.
#[tokio::test(start_paused = true)]
async fn who_waits_for_the_service_at_the_signal_is_not_served_after_it() {
    let (accepts, listener) = mpsc::channel(4);
    let begun = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new().layer(layer()).concurrency_limit(1).service_fn({
        let begun = Arc::clone(&begun);
        move |stream: Stream<DuplexStream, ()>| {
            begun.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(Duration::from_secs(5)).await;
                drop(stream);
                Ok::<_, io::Error>(())
            }
        }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let server =
        serve(Accepts(listener), service).with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(server.into_future());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(connector("key").connect(client).await.unwrap());
    }
    sleep(Duration::from_millis(1)).await;
    stop.send(()).unwrap();
    assert_eq!(clients[1].read(&mut [0]).await.unwrap(), 0, "closed at once");
    let shutdown = server.await.unwrap().unwrap();
    assert_eq!((begun.load(Ordering::Relaxed), shutdown.completed, shutdown.failed), (1, 1, 1));
}

/// A response that panics, and panics again when it is dropped.
#[tokio::test]
async fn a_panic_after_a_panic_is_told_and_counted_once() {
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("when dropped");
        }
    }

    struct Response {
        _bomb: Bomb,
    }

    impl Future for Response {
        type Output = io::Result<()>;

        fn poll(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            panic!("when polled");
        }
    }

    let (accepts, listener) = mpsc::channel(1);
    let (told, mut tell) = mpsc::unbounded_channel();
    let service = tower::service_fn(|_: Connection<DuplexStream, ()>| Response { _bomb: Bomb });
    let server =
        serve(Accepts(listener), service).on_error(move |error| told.send(error.to_string()).unwrap());
    let server = tokio::spawn(server.into_future());
    accepts.send(Ok(duplex(1).0)).await.unwrap();
    assert!(tell.recv().await.unwrap().ends_with("the service panicked: when polled"));
    server.abort();
    assert!(tell.recv().await.is_none());
}
