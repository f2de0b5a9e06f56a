use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer as _;

use super::Incoming;
use super::hand_off::{HandOff, WhileRoom};
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, PeerOf, Server};
use crate::serve::{Connection, OnError, ServeError, Settings, serve};
use crate::server::{AcceptError, ChallengeLayer};
use crate::transport::{AskStream, Inspect, Transport};

/// How many streams may wait to be pulled, unless told otherwise.
const CAPACITY: usize = 16;

/// An [`Incoming`] that accepts nothing yet.
#[must_use = "it accepts nothing before `start`"]
pub struct IncomingBuilder<L: Listener, M, X = AskStream> {
    listener: L,
    layer: ChallengeLayer<M, X>,
    capacity: usize,
    settings: Settings,
    on_error: OnError<AcceptError<Infallible>, L::Addr>,
}

impl<L: Listener, M, X> IncomingBuilder<L, M, X> {
    pub(super) fn new(listener: L, layer: ChallengeLayer<M, X>) -> Self {
        Self {
            listener,
            layer,
            capacity: CAPACITY,
            settings: Settings::default(),
            on_error: Box::new(|_| {}),
        }
    }

    /// Sets how many connections that have proven themselves may wait to be pulled. Default: 16.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn capacity(mut self, capacity: usize) -> Self {
        assert!(capacity > 0, "room for at least one");
        self.capacity = capacity;
        self
    }

    /// Sets how many connections there may be at the same time: see
    /// [`Serve::max_connections`](crate::serve::Serve::max_connections). What has been pulled counts as long as its
    /// [`Connection`] is there.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.set_max_connections(max);
        self
    }

    /// Shuts down when `signal` is ready, or when the `Incoming` is dropped. The listener is closed, handshakes that
    /// are pending end at once, what waits can still be pulled, and what has been pulled can see that it is time. Then
    /// [`Incoming::ended`] is waited for: until all of those have been dropped, or until
    /// [`shutdown_timeout`](Self::shutdown_timeout) has passed.
    ///
    /// What has been pulled can't be aborted from here: it is its owner's, and counted as
    /// [`detached`](crate::serve::Shutdown::detached).
    pub fn with_graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.graceful_shutdown = Some(Box::pin(signal));
        self
    }

    /// Sets a second signal, after which nothing is waited for: see
    /// [`Serve::with_forced_shutdown`](crate::serve::Serve::with_forced_shutdown).
    pub fn with_forced_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.forced_shutdown = Some(Box::pin(signal));
        self
    }

    /// Sets how long what has been pulled is waited for after the signal. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.settings.shutdown_timeout = timeout;
        self
    }

    /// Sets who is told of what went wrong: peers that did not prove themselves, connections that could not be
    /// accepted. Called between two accepts: it must neither block nor panic.
    pub fn on_error(
        mut self,
        f: impl FnMut(ServeError<AcceptError<Infallible>, L::Addr>) + Send + 'static,
    ) -> Self {
        self.on_error = Box::new(f);
        self
    }

    /// Begins to accept connections, in a task of its own.
    ///
    /// # Errors
    ///
    /// Those of the listener's `local_addr`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(mut self) -> io::Result<Incoming<L::Io, PeerOf<M>, L::Addr>>
    where
        L: Listener<Io: Transport + Unpin + Send + 'static, Addr: Clone + Send + 'static> + Send + 'static,
        M: Mechanism<Role = Server> + Send + Sync + 'static,
        X: Inspect<Connection<L::Io, L::Addr>> + Clone + Send + 'static,
        PeerOf<M>: Send + 'static,
        Accept<Connection<L::Io, L::Addr>, M>: Send + 'static,
    {
        let local_addr = self.listener.local_addr()?;
        let (sender, ready) = mpsc::channel(self.capacity);
        let hand_off = HandOff::new(sender);
        let service = WhileRoom { inner: self.layer.layer(hand_off.clone()), room: hand_off };
        let dropped = CancellationToken::new();
        let told = self.settings.graceful_shutdown.take().unwrap_or_else(|| Box::pin(pending()));
        let either = dropped.clone().run_until_cancelled_owned(told);
        self.settings.graceful_shutdown = Some(Box::pin(async { either.await.unwrap_or_default() }));
        let server = serve(self.listener, service).with_settings(self.settings).on_error(self.on_error);
        let (report, ended) = watch::channel(None);
        tokio::spawn(async move {
            // It can't fail, since `HandOff` never does.
            if let Ok(shutdown) = server.await {
                report.send_replace(Some(shutdown));
            }
        });
        Ok(Incoming { _dropped: dropped.drop_guard(), ready, local_addr, ended })
    }
}

impl<L: Listener + fmt::Debug, M: fmt::Debug, X> fmt::Debug for IncomingBuilder<L, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingBuilder")
            .field("listener", &self.listener)
            .field("layer", &self.layer)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
