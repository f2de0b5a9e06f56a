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

use super::callback::ErrorCallback;
use super::listen::Listen;
use super::permits::Permits;
use super::session::{Ended, Session};
use super::settings::Settings;
use super::shutdown::{BoxFuture, Shutdown};
use super::{Connection, ServeError};
use crate::error::BoxError;
use crate::observe;
use crate::transport::{PeerAddr, SocketOptions, Transport};

/// After this many accepted connections the other tasks run, even if the kernel's queue is never empty: in a flood their
/// latency matters most. tokio's own budget would allow 128.
const ACCEPTS_IN_A_ROW: usize = 8;

/// Serves the connections of `listener` with `service`, each in its own task.
///
/// The returned future runs the server. Accept errors, service errors and service panics do not stop it; they are
/// reported to [`Serve::on_error`]. [`SocketOptions`] are set on each connection: by default `TCP_NODELAY` and keep-alive.
///
/// The service is driven to readiness before a connection is accepted, so an outer layer that is not ready leaves
/// connections in the kernel's queue. A [`ChallengeLayer`](crate::ChallengeLayer) is always ready.
///
/// See the [module](super) for an example.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S>
where
    L: Listener<Io: Transport + Send + 'static, Addr: PeerAddr + Clone + Send + 'static> + Send + 'static,
    S: Service<Connection<L::Io, L::Addr>, Future: Send, Error: Into<BoxError>> + Clone + Send + 'static,
{
    Serve { listener, service, settings: Settings::default(), run: run::<L, S> }
}

/// The server that [`serve`] creates. It does nothing until it is awaited; to spawn it, call
/// [`into_future`](IntoFuture::into_future) first.
///
/// # Errors
///
/// The future resolves to an [`io::Error`] if `poll_ready` of the service fails, with the service's error inside, or if
/// a setting is invalid. It does not resolve to any error of a connection.
///
/// # Cancel safety
///
/// Dropping the future closes the listener and aborts all connections.
///
/// # Panics
///
/// Panics when polled outside a tokio runtime with the time driver enabled.
#[must_use = "the server does nothing until it is awaited"]
pub struct Serve<L: Listener, S> {
    listener: L,
    service: S,
    settings: Settings<L::Addr>,
    // The bounds are those of `serve`, where the compiler can name the one that is not met. Here they would be repeated,
    // with the message that this is not a future.
    run: Run<L, S>,
}

type Run<L, S> = fn(L, S, Settings<<L as Listener>::Addr>) -> BoxFuture<io::Result<Shutdown>>;

impl<L: Listener, S> Serve<L, S> {
    /// Shuts the server down when `signal` completes.
    ///
    /// The listener is closed, and in-flight handshakes end at once, as
    /// [`ShuttingDown`](crate::HandshakeErrorKind::ShuttingDown). Sessions can observe the signal through
    /// [`Authenticated::shutdown_token`](crate::Authenticated::shutdown_token); they continue until they end or until
    /// [`shutdown_timeout`](Self::shutdown_timeout) passes, and are then aborted. A session that blocks its thread cannot
    /// be aborted, and the server waits for it.
    pub fn graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.graceful_shutdown = Some(Box::pin(signal));
        self
    }

    /// Aborts all sessions when `signal` completes during a [graceful shutdown](Self::graceful_shutdown).
    ///
    /// It is first polled after the graceful shutdown began, so both signals can wait for Ctrl-C: the second Ctrl-C then
    /// aborts.
    pub fn forced_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.forced_shutdown = Some(Box::pin(signal));
        self
    }

    /// Sets how long sessions may continue after the shutdown signal. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.settings.shutdown_timeout = timeout;
        self
    }

    /// Sets how many connections may be open at the same time, handshakes and sessions together. Default: no limit.
    ///
    /// At the limit nothing is accepted: new connections wait in the kernel's queue until one is dropped.
    /// Unauthenticated peers wait in the same queue, so choose a larger limit than
    /// [`max_pending`](crate::admission::AdmissionBuilder::max_pending); the difference is what remains for sessions. A
    /// connection counts until its stream is dropped, even if the service has passed it on.
    ///
    /// A limit of 0 is an error when the server starts.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.max_connections = Some(max);
        self
    }

    /// Sets the options of each accepted socket. Default: [`SocketOptions::new`].
    ///
    /// If they cannot be set, the connection is closed and reported as [`ServeError::Connection`].
    pub fn socket_options(mut self, options: SocketOptions) -> Self {
        self.settings.socket_options = options;
        self
    }

    /// Sets a callback for errors. Default: with the feature `tracing` they are logged, otherwise they are dropped.
    ///
    /// Failed handshakes are among them. The callback runs in a thread of its own, behind a queue of 1,024 errors: if it
    /// panics or blocks, the server continues. Errors that find the queue full are dropped and counted in
    /// [`Shutdown::errors_dropped`], panics in [`Shutdown::callback_panics`]. When the server stops, it waits up to a
    /// second for the callback to handle what is queued.
    pub fn on_error(mut self, f: impl FnMut(ServeError<L::Addr>) + Send + 'static) -> Self {
        self.settings.on_error = ErrorCallback::new(f);
        self
    }

    pub(crate) fn with_settings(self, settings: Settings<L::Addr>) -> Self {
        Self { settings, ..self }
    }
}

impl<L: Listener, S> IntoFuture for Serve<L, S> {
    type Output = io::Result<Shutdown>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        (self.run)(self.listener, self.service, self.settings)
    }
}

fn run<L, S>(listener: L, service: S, settings: Settings<L::Addr>) -> BoxFuture<io::Result<Shutdown>>
where
    L: Listener<Io: Transport + Send + 'static, Addr: PeerAddr + Clone + Send + 'static> + Send + 'static,
    S: Service<Connection<L::Io, L::Addr>, Future: Send, Error: Into<BoxError>> + Clone + Send + 'static,
{
    Box::pin(async {
        let permits = settings.permits()?;
        let server = Server { service, settings, connections: JoinSet::new(), permits };
        server.run(listener).await
    })
}

impl<L: Listener + fmt::Debug, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// A running server.
struct Server<S, A> {
    service: S,
    settings: Settings<A>,
    connections: JoinSet<Ended<A>>,
    permits: Permits,
}

enum Event<IO, A> {
    Signal,
    Accepted(io::Result<(IO, A)>),
}

impl<S, A: PeerAddr + Clone + Send + 'static> Server<S, A> {
    async fn run<L>(mut self, listener: L) -> io::Result<Shutdown>
    where
        L: Listener<Io: Transport + Send + 'static, Addr = A>,
        S: Service<Connection<L::Io, A>, Future: Send, Error: Into<BoxError>> + Clone + Send + 'static,
    {
        let mut listener = Listen::new(listener);
        let shutdown = CancellationToken::new();
        // Cancelled at the signal, and if this future is dropped: some sessions may be out of reach of an abort.
        let cancel_on_drop = shutdown.clone().drop_guard();
        let mut in_a_row = 0;
        let stopped = loop {
            match poll_fn(|cx| self.poll_event(&mut listener, cx)).await {
                Ok(Event::Accepted(accepted)) => {
                    match accepted {
                        Ok((io, addr)) => {
                            let connection = Connection::new(io, addr, &shutdown);
                            let connection = connection.with_permit(self.permits.take());
                            match connection.set_socket_options(&self.settings.socket_options) {
                                Ok(()) => self.spawn(connection),
                                Err(error) => self.settings.on_error.report(ServeError::Connection {
                                    addr: connection.addr().clone(),
                                    error: error.into(),
                                }),
                            }
                        }
                        Err(error) => {
                            observe::accept_failed(&error);
                            self.settings.on_error.report(ServeError::Accept(error));
                        }
                    }
                    in_a_row += 1;
                    if in_a_row == ACCEPTS_IN_A_ROW {
                        in_a_row = 0;
                        yield_now().await;
                    }
                }
                Ok(Event::Signal) => break Ok(()),
                Err(error) => break Err(io::Error::other(error)),
            }
        };
        // The listener is closed before in-flight handshakes end and sessions see the signal.
        drop(listener);
        drop(cancel_on_drop);
        let shutdown = self.drain().await;
        stopped.map(|()| shutdown)
    }

    fn poll_event<L>(
        &mut self,
        listener: &mut Listen<L>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event<L::Io, A>, BoxError>>
    where
        L: Listener<Io: Transport, Addr = A>,
        S: Service<Connection<L::Io, A>, Error: Into<BoxError>>,
    {
        let signal = &mut self.settings.graceful_shutdown;
        if signal.as_mut().is_some_and(|signal| signal.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(Event::Signal));
        }
        while let Poll::Ready(Some(ended)) = self.connections.poll_join_next(cx) {
            self.settings.on_error.report_end(ended);
        }
        ready!(self.permits.poll_reserve(cx));
        ready!(self.service.poll_ready(cx)).map_err(Into::into)?;
        listener.poll_accept(cx).map(|accepted| Ok(Event::Accepted(accepted)))
    }

    fn spawn<IO>(&mut self, connection: Connection<IO, A>)
    where
        IO: Send + 'static,
        S: Service<Connection<IO, A>, Future: Send, Error: Into<BoxError>> + Clone + Send + 'static,
    {
        // The service that is ready is called, and its clone replaces it.
        let clone = self.service.clone();
        let service = std::mem::replace(&mut self.service, clone);
        let addr = connection.addr().clone();
        self.connections.spawn(Session::new(service, connection, addr));
    }

    /// Waits for the connections to end, and aborts those that are left after the grace period.
    async fn drain(self) -> Shutdown {
        let Self { service, mut settings, mut connections, permits } = self;
        // No longer called, and what it holds is released.
        drop(service);
        let mut grace_period = settings.grace_period();
        let mut shutdown = Shutdown::default();
        let drain = permits.close();
        {
            let mut drained = pin!(drain.completed());
            let mut aborting = false;
            let until_the_end = |cx: &mut Context<'_>| {
                if !aborting && grace_period.poll_end(cx).is_ready() {
                    aborting = true;
                    connections.abort_all();
                }
                while let Some(ended) = ready!(connections.poll_join_next(cx)) {
                    shutdown.count(&ended);
                    settings.on_error.report_end(ended);
                }
                // Streams that were passed on are waited for, too.
                if aborting { Poll::Ready(()) } else { drained.as_mut().poll(cx) }
            };
            poll_fn(until_the_end).await;
        }
        shutdown.detached = drain.len();
        (shutdown.errors_dropped, shutdown.callback_panics) = settings.on_error.finish().await;
        shutdown
    }
}

impl<A: PeerAddr + Send + 'static> ErrorCallback<A> {
    fn report_end(&mut self, ended: Result<Ended<A>, JoinError>) {
        // An aborted task has nothing to report, and the task itself does not panic: see `Session`.
        if let Ok(Err(error)) = ended {
            self.report(error);
        }
    }
}

impl Shutdown {
    fn count<A>(&mut self, ended: &Result<Ended<A>, JoinError>) {
        *match ended {
            Ok(Ok(())) => &mut self.completed,
            Ok(Err(ServeError::Panicked { .. })) => &mut self.panicked,
            Ok(Err(_)) => &mut self.failed,
            Err(_) => &mut self.aborted,
        } += 1;
    }
}
