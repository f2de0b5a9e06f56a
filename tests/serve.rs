//! The accept loop: a task for each connection, errors that do not stop the server, limits, and shutdown.
#![cfg(feature = "net")]

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

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

use crate::support::{REFUSED, answer_by_hand, connector, read_array, read_verdict, ring};

type Stream<IO = TcpStream, A = SocketAddr> = Authenticated<Connection<IO, A>, Identity>;

fn layer() -> ChallengeLayer<one_way::Server> {
    ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
}

/// Echoes, unless the client requests a panic, an error, or a session without an end.
async fn handle<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, A: Unpin>(
    mut stream: Stream<IO, A>,
) -> io::Result<()> {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            len => match &buf[..len] {
                b"panic" => panic!("requested panic"),
                b"fail" => return Err(io::Error::other("requested failure")),
                b"stay" => {
                    stream.write_all(b"staying").await?;
                    std::future::pending::<()>().await;
                }
                b"until" => {
                    stream.write_all(b"staying").await?;
                    stream.shutdown_token().expect("set by serve").clone().cancelled().await;
                    return stream.write_all(b"over").await;
                }
                data => stream.write_all(data).await?,
            },
        }
    }
}

/// A listener for tests that play the kernel.
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
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .shutdown_timeout(shutdown_timeout)
        .on_error({
            let errors = Arc::clone(&errors);
            move |error| errors.lock().unwrap().push(error.to_string())
        });
    let running = tokio::spawn(async move { serve.await.unwrap() });
    Server { addr, errors, stop, running }
}

async fn connect(addr: SocketAddr) -> Authenticated<TcpStream, one_way::ServerPeer> {
    connector("key").connect(TcpStream::connect(addr).await.unwrap()).await.unwrap()
}

async fn echo(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(&read_array::<5>(stream).await, b"hello");
}

#[tokio::test]
async fn connections_are_independent_and_errors_are_reported() {
    let server = server(Duration::from_secs(1)).await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    let mut first = connect(server.addr).await;
    echo(&mut first).await;

    // A wrong key, an error and a panic do not affect other connections.
    let mut wrong = TcpStream::connect(server.addr).await.unwrap();
    answer_by_hand(&mut wrong, "wrong").await;
    assert_eq!(read_verdict(&mut wrong).await, REFUSED);
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
    let wrong = format!("connection from {wrong_addr}: ");
    expect(&wrong, ": handshake refused: the answer matches none of the keys");
    expect("connection from", ": requested failure");
    expect("connection from", ": the service panicked: requested panic");
    expect("connection from", ": shut down before the handshake completed");
    assert_eq!(errors.len(), 4, "{errors:#?}");
}

#[tokio::test]
async fn connection_has_the_accepted_address_and_nodelay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (report, mut reports) = mpsc::channel(1);
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream| {
        let report = report.clone();
        async move {
            let connection = stream.get_ref();
            let nodelay = connection.get_ref().nodelay()?;
            report.send((*connection.addr(), nodelay)).await.map_err(io::Error::other)
        }
    });
    let server = tokio::spawn(serve(listener, service).into_future());
    let client = connect(addr).await;
    assert_eq!(reports.recv().await.unwrap(), (client.get_ref().local_addr().unwrap(), true));
    server.abort();
}

#[cfg(unix)]
#[tokio::test]
async fn serves_unix_sockets() {
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
async fn graceful_shutdown_closes_listener_ends_handshakes_and_waits_for_sessions() {
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
    assert!(TcpStream::connect(server.addr).await.is_err(), "the listener is closed");

    let shutdown = server.running.await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!((shutdown.completed, shutdown.failed, shutdown.aborted), (1, 1, 1));
    assert_eq!((shutdown.panicked, shutdown.detached), (0, 0));
    assert_eq!(stay.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn drop_aborts_connections() {
    let server = server(Duration::from_secs(60)).await;
    let mut stream = connect(server.addr).await;
    echo(&mut stream).await;
    server.running.abort();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn accept_errors_pause_the_loop_for_up_to_half_a_second() {
    /// Reports when each accept failed.
    struct Timed<L>(L, mpsc::UnboundedSender<u128>, Instant);

    impl<L: Listener> Listener for Timed<L> {
        type Io = L::Io;
        type Addr = L::Addr;

        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(L::Io, L::Addr)>> {
            let accepted = self.0.poll_accept(cx);
            if let Poll::Ready(Err(_)) = accepted {
                self.1.send(self.2.elapsed().as_millis()).unwrap();
            }
            accepted
        }

        fn local_addr(&self) -> io::Result<L::Addr> {
            self.0.local_addr()
        }
    }

    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle::<DuplexStream, ()>);
    let (failed, mut failures) = mpsc::unbounded_channel();
    let (report, mut reports) = mpsc::unbounded_channel();
    let begin = Instant::now();
    let server = serve(Timed(Accepts(listener), failed, begin), service).on_error(move |error| {
        if let ServeError::Accept(error) = error {
            report.send(error.kind()).unwrap();
        }
    });
    let server = tokio::spawn(server.into_future());

    let emfile = || Err(io::Error::from_raw_os_error(24));
    let emfile_kind = io::Error::from_raw_os_error(24).kind();
    for _ in 0..10 {
        accepts.send(emfile()).await.unwrap();
    }
    let mut at = Vec::new();
    for _ in 0..10 {
        at.push(failures.recv().await.unwrap());
    }
    assert_eq!(at, [0, 5, 15, 35, 75, 155, 315, 635, 1135, 1635]);

    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    echo(&mut connector("key").connect(client).await.unwrap()).await;
    assert!(begin.elapsed() < Duration::from_millis(2200), "accepts again within half a second");

    // An error of one connection causes no pause, and after a success the pauses are short again.
    let before = begin.elapsed().as_millis();
    accepts.send(Err(io::ErrorKind::ConnectionAborted.into())).await.unwrap();
    accepts.send(emfile()).await.unwrap();
    accepts.send(emfile()).await.unwrap();
    for expected in [before, before, before + 5] {
        assert_eq!(failures.recv().await.unwrap(), expected);
    }
    server.abort();

    // All of them were reported.
    let mut kinds = Vec::new();
    while let Some(kind) = reports.recv().await {
        kinds.push(kind);
    }
    let mut expected = vec![emfile_kind; 13];
    expected[10] = io::ErrorKind::ConnectionAborted;
    assert_eq!(kinds, expected);
}

/// An outer layer that is not ready leaves connections in the queue. A `ChallengeLayer` is always ready.
#[tokio::test(start_paused = true)]
async fn accepts_when_the_outer_service_is_ready() {
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
async fn poll_ready_error_ends_the_server() {
    #[derive(Clone)]
    struct Broken;

    impl tower::Service<Connection<DuplexStream, ()>> for Broken {
        type Response = ();
        type Error = AcceptError;
        type Future = std::future::Ready<Result<(), Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Err(AcceptError::Service("broken".into())))
        }

        fn call(&mut self, _: Connection<DuplexStream, ()>) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let (_accepts, listener) = mpsc::channel(1);
    let error = serve(Accepts(listener), Broken).await.unwrap_err();
    assert_eq!(error.to_string(), "broken");
    let error = error.get_ref().unwrap().downcast_ref::<AcceptError>();
    assert!(matches!(error, Some(AcceptError::Service(error)) if error.to_string() == "broken"));
}

#[tokio::test]
async fn limit_of_zero_connections_is_an_error_at_the_start() {
    let (_accepts, listener) = mpsc::channel(1);
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle::<DuplexStream, ()>);
    let error = serve(Accepts(listener), service).max_connections(0).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("max_connections is 0"), "{error}");
}

#[tokio::test]
async fn connection_errors_have_address_and_kind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle);
    let (report, mut reports) = mpsc::unbounded_channel();
    let server = serve(listener, service).on_error(move |error| {
        let kind = error.handshake_error().expect("the handshake fails").kind();
        let addr = *error.addr().expect("the error of a connection");
        if let ServeError::Connection { error, .. } = error
            && let Some(AcceptError::Handshake(error)) = error.downcast_ref()
        {
            assert_eq!(error.kind(), kind);
            report.send((addr, kind)).unwrap();
        }
    });
    let server = tokio::spawn(server.into_future());
    let mut client = TcpStream::connect(addr).await.unwrap();
    let from = client.local_addr().unwrap();
    client.write_all(b"x").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(reports.recv().await.unwrap(), (from, HandshakeErrorKind::UnexpectedEof));
    server.abort();
}

/// Waits until the condition holds.
async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn max_connections_stops_accepting_and_serves_the_queue_in_order() {
    let (accepts, listener) = mpsc::channel(64);
    let (call, mut calls) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream<DuplexStream, ()>| {
        call.send(stream).unwrap();
        std::future::ready(Ok::<_, io::Error>(()))
    });
    let server = tokio::spawn(serve(Accepts(listener), service).max_connections(2).into_future());
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(tokio::spawn(connector("key").connect(client)));
    }
    let mut sessions = vec![calls.recv().await.unwrap(), calls.recv().await.unwrap()];
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        accepts.capacity(),
        62,
        "two are left in the queue, although the service has returned for the others"
    );

    for client in clients.split_off(2) {
        // The connection that has waited longest is next when a stream is dropped, also outside of the service.
        drop(sessions.remove(0));
        let mut client = client.await.unwrap().unwrap();
        let mut session = calls.recv().await.unwrap();
        session.write_all(b"hi").await.unwrap();
        assert_eq!(&read_array::<2>(&mut client).await, b"hi");
        sessions.push(session);
    }
    server.abort();
}

/// An unauthenticated peer counts for the limit until its handshake ends, with success or not.
#[tokio::test(start_paused = true)]
async fn failed_handshake_releases_its_connection_permit() {
    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new().layer(layer()).service_fn(handle::<DuplexStream, ()>);
    let server = tokio::spawn(serve(Accepts(listener), service).max_connections(1).into_future());
    let mut silent = Vec::new();
    for _ in 0..3 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        silent.push(client);
    }
    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    let begin = Instant::now();
    let connect = connector("key").timeout(Duration::from_secs(60)).connect(client);
    echo(&mut connect.await.unwrap()).await;
    assert!((30..31).contains(&begin.elapsed().as_secs()), "after three deadlines of ten seconds");
    server.abort();
}

/// tower's limit within the layer counts sessions only: the peers that wait for it are authenticated.
#[tokio::test(start_paused = true)]
async fn inner_concurrency_limit_limits_sessions_only() {
    let (accepts, listener) = mpsc::channel(64);
    let service = ServiceBuilder::new()
        .layer(layer().ready_timeout(Duration::from_secs(5)))
        .concurrency_limit(1)
        .service_fn(handle::<DuplexStream, ()>);
    let (report, mut reports) = mpsc::unbounded_channel();
    let server = serve(Accepts(listener), service)
        .max_connections(10)
        .on_error(move |error| report.send(error.to_string()).unwrap());
    let server = tokio::spawn(server.into_future());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (client, io) = duplex(64);
        accepts.send(Ok(io)).await.unwrap();
        clients.push(connector("key").connect(client).await.unwrap());
    }
    echo(&mut clients[0]).await;
    // The second is accepted and served when the first session ends. The third waits too long and is closed.
    let (client, io) = duplex(64);
    accepts.send(Ok(io)).await.unwrap();
    let third = connector("key").connect(client).await.unwrap();
    drop(clients.remove(0));
    echo(&mut clients[0]).await;
    drop(third);
    let error = reports.recv().await.unwrap();
    assert!(error.ends_with("the service was not ready in time for an authenticated peer"), "{error}");
    server.abort();
}

#[tokio::test]
async fn forced_shutdown_aborts_and_all_outcomes_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (detach, mut detached) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |mut stream: Stream| {
        let detach = detach.clone();
        async move {
            let mut buf = [0; 16];
            let len = stream.read(&mut buf).await?;
            stream.write_all(b"ok").await?;
            match &buf[..len] {
                b"detach" => detach.send(stream).map_err(|_| io::Error::other("the receiver is gone")),
                b"stay" => std::future::pending().await,
                order => {
                    stream.shutdown_token().expect("set by serve").clone().cancelled().await;
                    match order {
                        b"panic" => panic!("requested panic"),
                        b"fail" => Err(io::Error::other("requested failure")),
                        _ => Ok(()),
                    }
                }
            }
        }
    });
    let (first, first_signal) = oneshot::channel::<()>();
    let (second, second_signal) = oneshot::channel::<()>();
    let server = serve(listener, service)
        .graceful_shutdown(async { first_signal.await.unwrap_or_default() })
        .forced_shutdown(async { second_signal.await.unwrap_or_default() })
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
    let stream = detached.recv().await.unwrap();

    first.send(()).unwrap();
    for (i, client) in clients.iter_mut().enumerate() {
        if i < 4 {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        }
    }
    assert!(stream.shutdown_token().unwrap().is_cancelled());
    assert!(!running.is_finished(), "two connections are still open");
    second.send(()).unwrap();
    let shutdown = running.await.unwrap().unwrap();
    let Shutdown { completed, failed, panicked, aborted, detached, .. } = shutdown;
    // The in-flight handshake is one of the failures. The detached connection completed before the signal, but its
    // stream is still open.
    assert_eq!((completed, failed, panicked, aborted, detached), (2, 2, 1, 1, 1));
}

/// The second signal is not polled before the first one completes, since both may wait for the same Ctrl-C.
#[tokio::test]
async fn forced_signal_is_polled_after_the_graceful_one_and_detached_streams_are_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (detach, mut detached) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(move |stream: Stream| {
        std::future::ready(detach.send(stream).map_err(|_| io::Error::other("the receiver is gone")))
    });
    let (first, first_signal) = oneshot::channel::<()>();
    let polled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&polled);
    let server = serve(listener, service)
        .graceful_shutdown(async { first_signal.await.unwrap_or_default() })
        .forced_shutdown(std::future::poll_fn(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        }));
    let running = tokio::spawn(server.into_future());
    let _client = connect(addr).await;
    let stream = detached.recv().await.unwrap();
    assert_eq!(polled.load(Ordering::Relaxed), 0);
    first.send(()).unwrap();
    eventually(|| polled.load(Ordering::Relaxed) > 0).await;
    assert!(!running.is_finished());
    drop(stream);
    assert_eq!(running.await.unwrap().unwrap(), Shutdown::default());
}

/// A listener that is always ready with a connection or an error, and does not use tokio's budget.
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
async fn flood_of_connections_or_errors_does_not_delay_the_signal() {
    for error in [false, true] {
        let service = tower::service_fn(|_: Connection<DuplexStream, ()>| async { Ok::<_, io::Error>(()) });
        let server = serve(Endless { error }, service).graceful_shutdown(sleep(Duration::from_millis(20)));
        let ended = tokio::time::timeout(Duration::from_secs(30), server.into_future()).await;
        ended.expect("the server ends").unwrap();
    }
}

/// When a session observes the shutdown, no new connection can be accepted.
#[tokio::test]
async fn listener_is_closed_before_the_shutdown_token_is_cancelled() {
    /// Woken at the moment at which the token is cancelled. Reports whether the listener is closed by then.
    struct ReportListener {
        accepts: mpsc::Sender<io::Result<DuplexStream>>,
        report: mpsc::UnboundedSender<bool>,
    }

    impl std::task::Wake for ReportListener {
        fn wake(self: Arc<Self>) {
            self.report.send(self.accepts.is_closed()).unwrap();
        }
    }

    let (accepts, listener) = mpsc::channel(1);
    let (report, mut reports) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let stop = Arc::new(Mutex::new(Some(stop)));
    let waker = std::task::Waker::from(Arc::new(ReportListener { accepts: accepts.clone(), report }));
    let service = tower::service_fn(move |connection: Connection<DuplexStream, ()>| {
        let (stop, waker) = (Arc::clone(&stop), waker.clone());
        async move {
            let mut cancelled = Box::pin(connection.shutdown_token().cancelled());
            assert!(cancelled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            stop.lock().unwrap().take().unwrap().send(()).unwrap();
            connection.shutdown_token().cancelled().await;
            Ok::<_, io::Error>(())
        }
    });
    let server = serve(Accepts(listener), service)
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .into_future();
    let server = tokio::spawn(server);
    accepts.send(Ok(duplex(1).0)).await.unwrap();
    assert!(reports.recv().await.unwrap(), "the listener is still open");
    server.await.unwrap().unwrap();
}

/// Otherwise a session would begin only to end at once.
#[tokio::test(start_paused = true)]
async fn authenticated_peer_waiting_for_the_service_is_closed_at_the_signal() {
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
        serve(Accepts(listener), service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
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

/// The response panics, and panics again when it is dropped.
#[tokio::test]
async fn panic_during_unwinding_is_reported_once() {
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
    let (report, mut reports) = mpsc::unbounded_channel();
    let service = tower::service_fn(|_: Connection<DuplexStream, ()>| Response { _bomb: Bomb });
    let server =
        serve(Accepts(listener), service).on_error(move |error| report.send(error.to_string()).unwrap());
    let server = tokio::spawn(server.into_future());
    accepts.send(Ok(duplex(1).0)).await.unwrap();
    assert!(reports.recv().await.unwrap().ends_with("the service panicked: when polled"));
    server.abort();
    assert!(reports.recv().await.is_none());
}
