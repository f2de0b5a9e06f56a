use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::catch_panic::CatchPanic;
use super::listen::Listen;
use super::{Connection, ServeError};
use crate::transport::Transport;

/// How long sessions may go on after the signal, unless told otherwise.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves each connection of `listener` with `service`, in a task of its own: a server, once it is awaited.
///
/// Accept errors are survived, as are errors and panics of the service; [`Serve::on_error`] is told. `TCP_NODELAY` is
/// set on each connection. The service is asked to be ready before the next connection is accepted, so an outer layer
/// that is not ready leaves connections in the kernel's queue; a [`ChallengeLayer`](crate::ChallengeLayer) always is.
///
/// See the [module](super) for an example.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S>
where
    L: Listener,
    S: Service<Connection<L::Io, L::Addr>>,
{
    Serve { listener, service, signal: None, shutdown_timeout: SHUTDOWN_TIMEOUT, on_error: Box::new(|_| {}) }
}

/// Who is told of what went wrong.
pub(crate) type OnError<E, A> = Box<dyn FnMut(ServeError<E, A>) + Send>;

/// A server that is not running yet. Await it, or [`into_future`](IntoFuture::into_future) and spawn it.
///
/// # Errors
///
/// It resolves to the service's own error if that fails in its `poll_ready`: it can never be called again then, and the
/// server has shut down as after a signal. Without [`with_graceful_shutdown`](Self::with_graceful_shutdown) that is the
/// only way in which it ends.
///
/// # Panics
///
/// With what `poll_ready` and `clone` of the service, or the error hook, panic with: they run in the accept loop. A
/// panic in a connection's own future harms no other.
///
/// # Cancel safety
///
/// Dropping the future closes the listener and aborts all connections.
#[must_use = "a server does nothing unless you `.await` it"]
pub struct Serve<L, S>
where
    L: Listener,
    S: Service<Connection<L::Io, L::Addr>>,
{
    listener: L,
    service: S,
    signal: Option<BoxFuture<()>>,
    shutdown_timeout: Duration,
    on_error: OnError<S::Error, L::Addr>,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Connections that ended by themselves after the signal or just before, handshakes, errors and panics included.
    pub finished: usize,
    /// Connections that were aborted at the deadline.
    pub aborted: usize,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<L, S> Serve<L, S>
where
    L: Listener,
    S: Service<Connection<L::Io, L::Addr>>,
{
    /// Shuts down when `signal` is ready. The listener is closed, handshakes that are pending end at once (as
    /// [`ShuttingDown`](crate::HandshakeErrorKind::ShuttingDown)), sessions can see that it is time
    /// ([`Authenticated::shutdown_token`](crate::Authenticated::shutdown_token)) and go on until they end or until
    /// [`shutdown_timeout`](Self::shutdown_timeout) has passed; then they are aborted.
    pub fn with_graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.signal = Some(Box::pin(signal));
        self
    }

    /// Sets how long sessions may go on after the signal. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets who is told of what went wrong. Called between two accepts: it must neither block nor panic.
    pub fn on_error(mut self, f: impl FnMut(ServeError<S::Error, L::Addr>) + Send + 'static) -> Self {
        self.on_error = Box::new(f);
        self
    }
}

impl<L, S> IntoFuture for Serve<L, S>
where
    L: Listener<Io: Transport + Send + 'static, Addr: Clone + Send + 'static> + Send + 'static,
    S: Service<Connection<L::Io, L::Addr>, Future: Send, Error: Send> + Clone + Send + 'static,
{
    type Output = Result<Shutdown, S::Error>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let server = Server { service: self.service, on_error: self.on_error, connections: JoinSet::new() };
        Box::pin(server.run(self.listener, self.signal, self.shutdown_timeout))
    }
}

impl<L, S> fmt::Debug for Serve<L, S>
where
    L: Listener + fmt::Debug,
    S: Service<Connection<L::Io, L::Addr>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// A server that runs.
struct Server<S, E, A> {
    service: S,
    on_error: OnError<E, A>,
    connections: JoinSet<Ended<E, A>>,
}

/// How a connection's task ended.
type Ended<E, A> = Result<(), ServeError<E, A>>;

enum Event<IO, A> {
    Signal,
    Accepted(IO, A),
}

impl<S, E: Send + 'static, A: Clone + Send + 'static> Server<S, E, A> {
    async fn run<L>(
        mut self,
        listener: L,
        mut signal: Option<BoxFuture<()>>,
        shutdown_timeout: Duration,
    ) -> Result<Shutdown, E>
    where
        L: Listener<Io: Transport + Send + 'static, Addr = A>,
        S: Service<Connection<L::Io, A>, Future: Send, Error = E> + Clone + Send + 'static,
    {
        let mut listener = Listen::new(listener);
        let shutdown = CancellationToken::new();
        // Told at the signal, and where the future is dropped: some sessions may be out of reach of an abort.
        let told = shutdown.clone().drop_guard();
        let stopped = loop {
            match poll_fn(|cx| self.poll_event(&mut listener, &mut signal, cx)).await {
                Ok(Event::Accepted(io, addr)) => self.spawn(Connection::new(io, addr, shutdown.clone())),
                Ok(Event::Signal) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // First of all nobody else comes in; then pending handshakes end, and sessions know.
        drop(listener);
        drop(told);
        let shutdown = self.wind_down(shutdown_timeout).await;
        stopped.map(|()| shutdown)
    }

    fn poll_event<L>(
        &mut self,
        listener: &mut Listen<L>,
        signal: &mut Option<BoxFuture<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event<L::Io, A>, E>>
    where
        L: Listener<Io: Transport, Addr = A>,
        S: Service<Connection<L::Io, A>, Error = E>,
    {
        if signal.as_mut().is_some_and(|signal| signal.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(Event::Signal));
        }
        while let Poll::Ready(Some(ended)) = self.connections.poll_join_next(cx) {
            self.report(ended);
        }
        loop {
            ready!(self.service.poll_ready(cx))?;
            match ready!(listener.poll_accept(cx)) {
                Ok((io, addr)) => return Poll::Ready(Ok(Event::Accepted(io, addr))),
                Err(error) => (self.on_error)(ServeError::Accept(error)),
            }
        }
    }

    fn spawn<IO>(&mut self, connection: Connection<IO, A>)
    where
        IO: Send + 'static,
        S: Service<Connection<IO, A>, Future: Send, Error = E> + Clone + Send + 'static,
    {
        // The one that is ready is called, and its clone takes its place; called within the task, whose panics harm
        // nobody else.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        self.connections.spawn(async move {
            let addr = connection.addr().clone();
            match CatchPanic::new(async move { service.call(connection).await }).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(ServeError::Connection { addr, error }),
                Err(payload) => Err(ServeError::panicked(addr, &*payload)),
            }
        });
    }

    /// Waits for the connections to end, and aborts those that have not when the time is up.
    async fn wind_down(&mut self, timeout: Duration) -> Shutdown {
        let mut shutdown = Shutdown { finished: 0, aborted: 0 };
        let mut deadline = pin!(sleep(timeout));
        let mut aborting = false;
        let mut next = |connections: &mut JoinSet<_>, cx: &mut Context<'_>| {
            if !aborting && deadline.as_mut().poll(cx).is_ready() {
                aborting = true;
                connections.abort_all();
            }
            connections.poll_join_next(cx)
        };
        while let Some(ended) = poll_fn(|cx| next(&mut self.connections, cx)).await {
            if ended.as_ref().is_err_and(JoinError::is_cancelled) {
                shutdown.aborted += 1;
            } else {
                shutdown.finished += 1;
            }
            self.report(ended);
        }
        shutdown
    }

    fn report(&mut self, ended: Result<Ended<E, A>, JoinError>) {
        // A task of ours does not panic, and one that was aborted has nothing to tell.
        if let Ok(Err(error)) = ended {
            (self.on_error)(error);
        }
    }
}
