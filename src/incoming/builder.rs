use std::fmt;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;

use super::Incoming;
use super::hand_off::Handshakes;
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
use crate::prepare::{NoPrepare, Prepare};
use crate::serve::{Connection, ErrorCallback, ServeError, Settings, serve};
use crate::server::ChallengeLayer;
use crate::transport::{PeerAddr, SocketOptions, Transport};

/// How many streams may wait to be pulled, by default.
const CAPACITY: usize = 16;

/// The settings of an [`Incoming`], which [`start`](Self::start) creates.
#[must_use = "nothing is accepted before `start`"]
pub struct IncomingBuilder<L: Listener, M, S = NoPrepare> {
    listener: L,
    layer: ChallengeLayer<M, S>,
    capacity: usize,
    settings: Settings<L::Addr>,
}

impl<L: Listener, M, S> IncomingBuilder<L, M, S> {
    pub(super) fn new(listener: L, layer: ChallengeLayer<M, S>) -> Self {
        Self { listener, layer, capacity: CAPACITY, settings: Settings::default() }
    }

    /// Sets how many authenticated connections may wait to be pulled. Default: 16. A capacity of 0 is an error when the
    /// `Incoming` starts.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets how many connections may be open at the same time, see
    /// [`Serve::max_connections`](crate::serve::Serve::max_connections). A connection that was pulled counts until its
    /// [`Connection`] is dropped.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.settings.max_connections = Some(max);
        self
    }

    /// Shuts down when `signal` completes, or when the `Incoming` is dropped.
    ///
    /// The listener is closed, and in-flight handshakes end at once. Connections that wait can still be pulled, and
    /// those that were pulled can observe the signal through
    /// [`Authenticated::shutdown_token`](crate::Authenticated::shutdown_token). [`Incoming::closed`] completes when all
    /// of them have been dropped, or when [`shutdown_timeout`](Self::shutdown_timeout) has passed.
    ///
    /// A connection that was pulled belongs to its owner and cannot be aborted from here; it is counted as
    /// [`detached`](crate::serve::Shutdown::detached).
    pub fn graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.graceful_shutdown = Some(Box::pin(signal));
        self
    }

    /// Ends the wait of a graceful shutdown when `signal` completes, see
    /// [`Serve::forced_shutdown`](crate::serve::Serve::forced_shutdown).
    pub fn forced_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settings.forced_shutdown = Some(Box::pin(signal));
        self
    }

    /// Sets how long a graceful shutdown waits for connections that were pulled. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.settings.shutdown_timeout = timeout;
        self
    }

    /// Sets the options of each accepted socket, see
    /// [`Serve::socket_options`](crate::serve::Serve::socket_options).
    pub fn socket_options(mut self, options: SocketOptions) -> Self {
        self.settings.socket_options = options;
        self
    }

    /// Sets a callback for errors, see [`Serve::on_error`](crate::serve::Serve::on_error): failed handshakes and accept
    /// errors.
    pub fn on_error(mut self, f: impl FnMut(ServeError<L::Addr>) + Send + 'static) -> Self {
        self.settings.on_error = ErrorCallback::new(f);
        self
    }

    /// Starts to accept connections, in a task of its own.
    ///
    /// # Errors
    ///
    /// Returns the error of the listener's `local_addr`, or [`InvalidInput`](io::ErrorKind::InvalidInput) for a
    /// capacity or a number of connections of 0.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    #[expect(clippy::type_complexity, reason = "an alias would hide the types from the documentation")]
    pub fn start(mut self) -> io::Result<Incoming<StreamOf<M, S::Stream>, PeerOf<M>, L::Addr>>
    where
        L: Listener<Io: Transport + Unpin + Send + 'static, Addr: PeerAddr + Clone + Send + 'static>
            + Send
            + 'static,
        M: Mechanism<Role = ServerRole> + Send + Sync + 'static,
        S: Prepare<
                Connection<L::Io, L::Addr>,
                Stream: AsyncRead + AsyncWrite + Transport + Unpin + Send + 'static,
            > + Clone
            + Send
            + 'static,
        StreamOf<M, S::Stream>: Transport + Send + 'static,
        PeerOf<M>: Send + 'static,
        Accept<Connection<L::Io, L::Addr>, M, S>: Send + 'static,
    {
        if self.capacity == 0 || self.settings.max_connections == Some(0) {
            let error = "capacity or max_connections is 0: no connection could ever be accepted";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let local_addr = self.listener.local_addr()?;
        let (sender, ready) = mpsc::channel(self.capacity);
        let service = Handshakes::new(self.layer, sender);
        let dropped = CancellationToken::new();
        let signal = self.settings.graceful_shutdown.take().unwrap_or_else(|| Box::pin(pending()));
        let either = dropped.clone().run_until_cancelled_owned(signal);
        self.settings.graceful_shutdown = Some(Box::pin(async { either.await.unwrap_or_default() }));
        let server = serve(self.listener, service).with_settings(self.settings);
        let (report, closed) = watch::channel(None);
        tokio::spawn(async move {
            // It cannot fail: the service is never an error, and the settings were checked.
            if let Ok(shutdown) = server.await {
                report.send_replace(Some(shutdown));
            }
        });
        Ok(Incoming { _dropped: dropped.drop_guard(), ready, local_addr, closed })
    }
}

impl<L: Listener + fmt::Debug, M: fmt::Debug, S> fmt::Debug for IncomingBuilder<L, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingBuilder")
            .field("listener", &self.listener)
            .field("layer", &self.layer)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
