//! The callback for errors of an accept loop runs in a thread of its own: it can neither stop the server nor stall it.
//!
//! These tests run in real time, since the callback does, and wait for what it reports.
#![cfg(feature = "net")]

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;
use std::panic::panic_any;
use std::sync::mpsc as threads;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::net::Listener;
use tower::{Service, ServiceBuilder, service_fn};
use tower_challenge::serve::{ServeError, Shutdown};
use tower_challenge::{
    Authenticated, BoxError, ChallengeLayer, Connection, Identity, Incoming, one_way, serve,
};

use crate::support::{connector, ring};

/// How many errors may wait for the callback.
const QUEUE_LEN: usize = 1024;

/// A listener that accepts what the test sends.
struct Accepts(mpsc::UnboundedReceiver<io::Result<DuplexStream>>);

impl Listener for Accepts {
    type Io = DuplexStream;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, ())>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(accepted.map(|io| (io, ()))),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

type Report = ServeError<()>;

/// The error number `number`, which concerns one connection, so that the accept loop does not pause.
fn accept_error(number: usize) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, number.to_string())
}

/// Returns the number of an [`accept_error`].
fn number(error: &Report) -> usize {
    let ServeError::Accept(error) = error else { panic!("not an accept error") };
    error.to_string().parse().unwrap()
}

struct Server {
    accepts: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<io::Result<Shutdown>>,
}

impl Server {
    /// Starts a server that echoes bytes to authenticated peers.
    fn start(on_error: impl FnMut(Report) + Send + 'static) -> Self {
        let echo = |mut stream: Authenticated<Connection<DuplexStream, ()>, Identity>| async move {
            let byte = stream.read_u8().await?;
            stream.write_u8(byte).await
        };
        let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
        Self::of(ServiceBuilder::new().layer(layer).service_fn(echo), Some(on_error))
    }

    fn of<S>(service: S, on_error: Option<impl FnMut(Report) + Send + 'static>) -> Self
    where
        S: Service<Connection<DuplexStream, ()>, Future: Send, Error: Into<BoxError>>
            + Clone
            + Send
            + 'static,
    {
        let (accepts, listener) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server =
            serve(Accepts(listener), service).graceful_shutdown(async { stopped.await.unwrap_or_default() });
        if let Some(on_error) = on_error {
            server = server.on_error(on_error);
        }
        Self { accepts, stop, running: tokio::spawn(server.into_future()) }
    }

    fn fail(&self, numbers: impl IntoIterator<Item = usize>) {
        for number in numbers {
            self.accepts.send(Err(accept_error(number))).unwrap();
        }
    }

    fn accept(&self) -> DuplexStream {
        let (client, io) = duplex(64);
        self.accepts.send(Ok(io)).unwrap();
        client
    }

    /// Completes when the server has handled everything that was sent to it before, and serves a client.
    async fn serves(&self) {
        let mut stream = connector("key").connect(self.accept()).await.unwrap();
        stream.write_u8(7).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
    }

    /// Waits until the server has closed a connection.
    async fn closes(&self) {
        let mut client = self.accept();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    async fn stop(self) -> Shutdown {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap()
    }
}

/// Blocks the callback until it is dropped.
struct Blocked {
    entered: mpsc::UnboundedReceiver<()>,
    _release: threads::Sender<Infallible>,
}

/// Returns a callback that never returns.
fn blocking<A: 'static>() -> (Blocked, impl FnMut(ServeError<A>) + Send + 'static) {
    let (enter, entered) = mpsc::unbounded_channel();
    let (release, released) = threads::channel();
    let on_error = move |_| {
        enter.send(()).unwrap();
        // Fails when the test ends.
        let _: Result<Infallible, _> = released.recv();
    };
    (Blocked { entered, _release: release }, on_error)
}

/// A value whose destructor panics, but not during another panic, which would abort the process.
#[derive(Debug)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[tokio::test]
async fn thousand_errors_arrive_in_order_before_the_server_returns() {
    /// Sends what it has collected when it is dropped.
    struct Collected(Vec<usize>, threads::Sender<Vec<usize>>);

    impl Drop for Collected {
        fn drop(&mut self) {
            self.1.send(std::mem::take(&mut self.0)).unwrap();
        }
    }

    let (done, results) = threads::channel();
    let mut collected = Collected(Vec::new(), done);
    let server = Server::start(move |error| collected.0.push(number(&error)));
    server.fail(0..1_000);
    server.serves().await;
    let shutdown = server.stop().await;
    // Without waiting: the callback has been dropped by now.
    assert_eq!(results.try_recv().unwrap(), (0..1_000).collect::<Vec<_>>());
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (0, 0));
}

#[tokio::test]
async fn panicking_callback_is_called_again_and_counted() {
    let (report, reports) = threads::channel();
    let server = Server::start(move |error| {
        let number = number(&error);
        report.send(number).unwrap();
        assert!(!number.is_multiple_of(2), "requested panic");
    });
    server.fail(0..100);
    server.serves().await;
    let shutdown = server.stop().await;
    assert_eq!(reports.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (0, 50));
}

/// For example a log whose reader has stopped reading.
#[tokio::test]
async fn blocked_callback_does_not_stall_the_server() {
    let (mut blocked, on_error) = blocking();
    let server = Server::start(on_error);
    server.fail([0]);
    blocked.entered.recv().await.unwrap();
    server.fail(1..=2_000);
    server.serves().await;
    let begin = Instant::now();
    let shutdown = server.stop().await;
    // It waits for the callback for a second.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (2_000 - QUEUE_LEN, 0));
    assert_eq!(shutdown.aborted, 0);
}

#[tokio::test]
async fn blocked_callback_does_not_stall_an_incoming() {
    let (mut blocked, on_error) = blocking();
    let (accepts, listener) = mpsc::unbounded_channel();
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let mut incoming = Incoming::builder(Accepts(listener), layer).on_error(on_error).start().unwrap();
    accepts.send(Err(accept_error(0))).unwrap();
    blocked.entered.recv().await.unwrap();
    for number in 1..=2_000 {
        accepts.send(Err(accept_error(number))).unwrap();
    }
    let (client, io) = duplex(64);
    accepts.send(Ok(io)).unwrap();
    let (accepted, connected) = tokio::join!(incoming.accept(), connector("key").connect(client));
    drop((accepted.unwrap(), connected.unwrap()));
    let closed = incoming.closed();
    drop(incoming);
    let shutdown = closed.await.unwrap();
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (2_000 - QUEUE_LEN, 0));
}

/// tokio's blocking pool would keep it from ending.
#[test]
fn blocked_callback_does_not_keep_the_runtime_from_ending() {
    let runtime = Runtime::new().unwrap();
    let (mut blocked, on_error) = blocking();
    let server = runtime.block_on(async { Server::start(on_error) });
    server.fail([0]);
    blocked.entered.blocking_recv().unwrap();
    let (ended, has_ended) = threads::channel();
    std::thread::spawn(move || {
        drop(runtime);
        ended.send(()).unwrap();
    });
    // At once, if the machine is not busy.
    has_ended.recv_timeout(Duration::from_secs(5)).expect("the runtime ends");
}

/// What is dropped by a callback is foreign code as well.
#[tokio::test]
async fn panic_payload_of_the_callback_may_panic_when_dropped() {
    let (report, reports) = threads::channel();
    let server = Server::start(move |error| {
        report.send(number(&error)).unwrap();
        panic_any(Bomb);
    });
    server.fail(0..3);
    server.serves().await;
    let shutdown = server.stop().await;
    assert_eq!(reports.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (0, 3));
}

/// Whether the callback was called or not.
#[tokio::test]
async fn captured_state_may_panic_when_dropped() {
    for calls in [0, 1] {
        let captured = Bomb;
        let server = Server::start(move |_| {
            let _ = &captured;
        });
        server.fail(0..calls);
        server.serves().await;
        let shutdown = server.stop().await;
        assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (0, 1), "after {calls} calls");
    }
}

/// The error of a service, whose destructor panics.
#[derive(Debug)]
struct Explosive {
    _bomb: Bomb,
}

impl fmt::Display for Explosive {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("printed");
    }
}

impl Error for Explosive {}

#[tokio::test]
async fn error_of_the_service_may_panic_when_printed_or_dropped() {
    let explode =
        || service_fn(|_: Connection<DuplexStream, ()>| async { Err::<(), _>(Explosive { _bomb: Bomb }) });
    // Without a callback it is dropped by the server, or logged.
    let server = Server::of(explode(), None::<fn(Report)>);
    for _ in 0..3 {
        server.closes().await;
    }
    server.stop().await;

    // If the queue is full, it is dropped by the server, too.
    let (mut blocked, on_error) = blocking();
    let server = Server::of(explode(), Some(on_error));
    server.fail([0]);
    blocked.entered.recv().await.unwrap();
    server.fail(1..=QUEUE_LEN);
    for _ in 0..3 {
        server.closes().await;
    }
    let shutdown = server.stop().await;
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (3, 0));

    // Otherwise by the callback.
    let server = Server::of(explode(), Some(drop::<Report>));
    for _ in 0..3 {
        server.closes().await;
    }
    let shutdown = server.stop().await;
    assert_eq!((shutdown.errors_dropped, shutdown.callback_panics), (0, 3));
}

/// Whatever panics on a connection is reported with its address, and counted.
#[tokio::test]
async fn every_panic_of_a_service_is_reported() {
    /// An error whose conversion panics.
    struct Unconvertible;

    impl From<Unconvertible> for BoxError {
        fn from(_: Unconvertible) -> Self {
            panic!("converted");
        }
    }

    async fn reports<S>(service: S) -> Vec<String>
    where
        S: Service<Connection<DuplexStream, ()>, Future: Send, Error: Into<BoxError>>
            + Clone
            + Send
            + 'static,
    {
        let (report, reports) = threads::channel();
        let on_error = move |error: Report| match error {
            ServeError::Panicked { message, .. } => report.send(message).unwrap(),
            other => report.send(other.to_string()).unwrap(),
        };
        let server = Server::of(service, Some(on_error));
        for _ in 0..3 {
            server.closes().await;
        }
        let shutdown = server.stop().await;
        assert_eq!((shutdown.aborted, shutdown.callback_panics), (0, 0), "{shutdown:?}");
        reports.try_iter().collect()
    }

    type Io = Connection<DuplexStream, ()>;

    /// Panics unless it is called by the compiler only.
    fn explode() {
        if std::hint::black_box(true) {
            panic_any(Bomb);
        }
    }

    let payload = service_fn(|_: Io| async {
        explode();
        Ok::<_, Infallible>(())
    });
    assert_eq!(reports(payload).await, [""; 3]);
    let response = service_fn(|_: Io| async { Ok::<_, Infallible>(Bomb) });
    assert_eq!(reports(response).await, ["dropped"; 3]);
    let error = service_fn(|_: Io| async { Err::<(), _>(Unconvertible) });
    assert_eq!(reports(error).await, ["converted"; 3]);
}
