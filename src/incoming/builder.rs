use std::convert::Infallible;
use std::fmt;
use std::future::IntoFuture as _;
use std::io;

use tokio::sync::mpsc;
use tokio_util::net::Listener;
use tower_layer::Layer as _;

use super::Incoming;
use super::hand_off::{HandOff, WhileRoom};
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, PeerOf, Server};
use crate::serve::{Connection, OnError, ServeError, serve};
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
    on_error: OnError<AcceptError<Infallible>, L::Addr>,
}

impl<L: Listener, M, X> IncomingBuilder<L, M, X> {
    pub(super) fn new(listener: L, layer: ChallengeLayer<M, X>) -> Self {
        Self { listener, layer, capacity: CAPACITY, on_error: Box::new(|_| {}) }
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
    pub fn start(self) -> io::Result<Incoming<L::Io, PeerOf<M>, L::Addr>>
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
        let server = serve(self.listener, service).on_error(self.on_error).into_future();
        let server = tokio::spawn(async move {
            // Without a signal it ends when it is aborted, or with an error that can't exist: `HandOff` never fails.
            let _ = server.await;
        });
        Ok(Incoming { ready, local_addr, server })
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
