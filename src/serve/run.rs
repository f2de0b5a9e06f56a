use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet, yield_now};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::listen::Listen;
use super::place::Places;
use super::session::{Ended, Session};
use super::settings::Settings;
use super::shutdown::{BoxFuture, Patience, Shutdown};
use super::{Connection, ServeError};
use crate::observe;
use crate::transport::Transport;

/// After so many, those that are there get their turn, even where the kernel's queue is never empty: in a flood it is
/// their latency that suffers. tokio's own budget would allow 128.
const ACCEPTS_IN_A_ROW: usize = 8;

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
    Serve { listener, service, settings: Settings::default(), on_error: Box::new(|_| {}) }
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
    settings: Settings,
    on_error: OnError<S::Error, L::Addr>,
}

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
        self.settings.graceful_shutdown = Some(Box::pin(signal));
        self
    }

    /// Ends the server at once when `signal` is ready, after the one of
    /// [`with_graceful_shutdown`](Self::with_graceful_shutdown): what is still there is aborted. It is not polled
    /// before the first signal has come, so that both may wait for Ctrl-C, say.
    pub fn with_forced_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.forced_shutdown = Some(Box::pin(signal));
        self
    }

    /// Sets how long sessions may go on after the signal. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.settings.shutdown_timeout = timeout;
        self
    }

    /// Sets how many connections there may be at the same time, handshakes and sessions together. Default: no limit.
    ///
    /// Where there are so many, nothing is accepted: who comes waits in the kernel's queue, and is served in order when
    /// a connection is dropped. Strangers wait in the same queue and take the same places, so it must be larger than what
    /// [`Admission`](crate::Admission) lets be pending; the difference is what is there for sessions. A connection
    /// counts as long as its stream is there, also where the service has handed that on.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.set_max_connections(max);
        self
    }

    /// Takes over what has been set elsewhere.
    pub(crate) fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
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
        let server = Server {
            service: self.service,
            on_error: self.on_error,
            connections: JoinSet::new(),
            places: self.settings.places(),
        };
        Box::pin(server.run(self.listener, self.settings))
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
    places: Places,
}

enum Event<IO, A> {
    Signal,
    Accepted(io::Result<(IO, A)>),
}

impl<S, E: Send + 'static, A: Clone + Send + 'static> Server<S, E, A> {
    async fn run<L>(mut self, listener: L, mut settings: Settings) -> Result<Shutdown, E>
    where
        L: Listener<Io: Transport + Send + 'static, Addr = A>,
        S: Service<Connection<L::Io, A>, Future: Send, Error = E> + Clone + Send + 'static,
    {
        let mut listener = Listen::new(listener);
        let shutdown = CancellationToken::new();
        // Told at the signal, and where the future is dropped: some sessions may be out of reach of an abort.
        let told = shutdown.clone().drop_guard();
        let mut in_a_row = 0;
        let stopped = loop {
            match poll_fn(|cx| self.poll_event(&mut listener, &mut settings.graceful_shutdown, cx)).await {
                Ok(Event::Accepted(accepted)) => {
                    match accepted {
                        Ok((io, addr)) => {
                            let connection = Connection::new(io, addr, shutdown.clone());
                            let connection = connection.at(self.places.take());
                            self.spawn(connection);
                        }
                        Err(error) => {
                            observe::accept_failed(&error);
                            (self.on_error)(ServeError::Accept(error));
                        }
                    }
                    in_a_row += 1;
                    if in_a_row == ACCEPTS_IN_A_ROW {
                        in_a_row = 0;
                        yield_now().await;
                    }
                }
                Ok(Event::Signal) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // First of all nobody else comes in; then pending handshakes end, and sessions know.
        drop(listener);
        drop(told);
        let shutdown = self.wind_down(settings.patience()).await;
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
            report(&mut self.on_error, ended);
        }
        ready!(self.places.poll_reserve(cx));
        ready!(self.service.poll_ready(cx))?;
        listener.poll_accept(cx).map(|accepted| Ok(Event::Accepted(accepted)))
    }

    fn spawn<IO>(&mut self, connection: Connection<IO, A>)
    where
        IO: Send + 'static,
        S: Service<Connection<IO, A>, Future: Send, Error = E> + Clone + Send + 'static,
    {
        // The one that is ready is called, and its clone takes its place.
        let clone = self.service.clone();
        let service = std::mem::replace(&mut self.service, clone);
        let addr = connection.addr().clone();
        self.connections.spawn(Session::new(service, connection, addr));
    }

    /// Waits for the connections to end, and aborts those that have not when patience is used up.
    async fn wind_down(mut self, mut patience: Patience) -> Shutdown {
        // Nobody is called any more, and what it holds is not held on to.
        drop(self.service);
        let mut shutdown = Shutdown::default();
        let leaving = self.places.close();
        {
            let mut gone = pin!(leaving.gone());
            let mut aborting = false;
            let until_the_end = |cx: &mut Context<'_>| {
                if !aborting && patience.poll_end(cx).is_ready() {
                    aborting = true;
                    self.connections.abort_all();
                }
                while let Some(ended) = ready!(self.connections.poll_join_next(cx)) {
                    shutdown.count(&ended);
                    report(&mut self.on_error, ended);
                }
                // The streams that went elsewhere are waited for, too.
                if aborting { Poll::Ready(()) } else { gone.as_mut().poll(cx) }
            };
            poll_fn(until_the_end).await;
        }
        shutdown.detached = leaving.len();
        shutdown
    }
}

impl Shutdown {
    fn count<E, A>(&mut self, ended: &Result<Ended<E, A>, JoinError>) {
        *match ended {
            Ok(Ok(())) => &mut self.completed,
            Ok(Err(ServeError::Panicked { .. })) => &mut self.panicked,
            Ok(Err(_)) => &mut self.failed,
            Err(_) => &mut self.aborted,
        } += 1;
    }
}

fn report<E, A>(on_error: &mut OnError<E, A>, ended: Result<Ended<E, A>, JoinError>) {
    // One that was aborted has nothing to tell, and the task itself does not panic: see `Session`.
    if let Ok(Err(error)) = ended {
        on_error(error);
    }
}
