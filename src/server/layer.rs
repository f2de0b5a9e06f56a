use std::fmt;
use std::time::Duration;

use tower_layer::Layer;

use super::Challenge;
use crate::acceptor::Acceptor;
use crate::admission::Admission;
use crate::mechanism::{Mechanism, ServerRole};
use crate::prepare::{NoPrepare, Then};

/// A layer that runs the server's side of a handshake before it calls the service within.
///
/// It makes a `Service<IO>` of fresh connections from an inner `Service<Authenticated<IO, Peer>>`. The inner service is
/// called once the peer has proven itself, and never with any other connection.
///
/// ```no_run
/// use std::time::Duration;
///
/// use tokio::io::AsyncWriteExt as _;
/// use tokio::net::{TcpListener, TcpStream};
/// use tower::ServiceBuilder;
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge::{Authenticated, ChallengeLayer, Connection, KeyFile, serve};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = mutual::KeyRing::new(KeyFile::new("keys").read()?)?;
/// let server = mutual::Server::new(keys, Audience::new("orders")?);
/// let service = ServiceBuilder::new()
///     .layer(ChallengeLayer::new(server).timeout(Duration::from_secs(3)))
///     .service_fn(handler);
/// serve(TcpListener::bind("127.0.0.1:8888").await?, service).await?;
/// # Ok(())
/// # }
///
/// async fn handler(
///     mut stream: Authenticated<Connection<TcpStream>, mutual::Peer>,
/// ) -> std::io::Result<()> {
///     stream.write_all(b"hello").await
/// }
/// ```
///
/// # Errors and readiness
///
/// The error of the service is [`AcceptError`](super::AcceptError), whatever the error of the inner service: a
/// handler may return `io::Error`, tower's `BoxError` or `anyhow::Error`.
///
/// The service is always ready. The inner service is asked for readiness only after the handshake, so that an
/// unauthenticated peer cannot hold a reservation of it; see [`ready_timeout`](Self::ready_timeout).
///
/// The layer is cheap to clone.
pub struct ChallengeLayer<M, P = NoPrepare> {
    acceptor: Acceptor<M, P>,
    ready_timeout: Duration,
}

impl<M> ChallengeLayer<M> {
    /// Creates a layer with a deadline of [10 seconds](crate::DEFAULT_TIMEOUT) and the default [`Admission`].
    pub fn new(mechanism: M) -> Self
    where
        M: Mechanism<Role = ServerRole>,
    {
        Self::from_acceptor(Acceptor::new(mechanism))
    }

    /// Sets a step that runs before the handshake, such as a TLS handshake: a `Fn(IO) -> Future` that returns the stream
    /// for the handshake, or the header of the PROXY protocol.
    ///
    /// The step runs in the handshake's slot and within its deadline, see [`prepare`](crate::prepare).
    #[must_use]
    pub fn prepare<S>(self, step: S) -> ChallengeLayer<M, S> {
        ChallengeLayer { acceptor: self.acceptor.prepare(step), ready_timeout: self.ready_timeout }
    }
}

impl<M, P> ChallengeLayer<M, P> {
    /// Sets a further step, which runs after those that were set before it.
    #[must_use]
    pub fn then_prepare<S>(self, step: S) -> ChallengeLayer<M, Then<P, S>> {
        ChallengeLayer { acceptor: self.acceptor.then_prepare(step), ready_timeout: self.ready_timeout }
    }

    /// Creates a layer with the mechanism and the settings of `acceptor`.
    pub const fn from_acceptor(acceptor: Acceptor<M, P>) -> Self {
        Self { acceptor, ready_timeout: crate::DEFAULT_TIMEOUT }
    }

    /// Sets the deadline of the whole handshake. Default: 10 seconds.
    ///
    /// The time runs from the call of the service. It covers all reads and writes, and no message restarts it. The
    /// inner service is not part of it: tower's `timeout` around this layer would end sessions as well.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.acceptor = self.acceptor.timeout(timeout);
        self
    }

    /// Sets the [admission control](crate::admission): how many handshakes may be in flight, in total and for each
    /// source, and which sources are refused. Several layers can share one [`Admission`].
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.acceptor = self.acceptor.admission(admission);
        self
    }

    /// Ends the sessions of a key `grace` after it is [revoked](crate::key::Revocation): by a
    /// [`KeyRing`](crate::KeyRing) that no longer has it, for example. Default: they continue, and can observe the
    /// revocation through [`Authenticated::revocation`](crate::Authenticated::revocation).
    ///
    /// The inner service's response is dropped, and the error is [`AcceptError::Revoked`](super::AcceptError::Revoked).
    /// If the stream was passed on, its reads and writes fail. With `Duration::ZERO` sessions end at once.
    #[must_use]
    pub fn end_revoked_sessions(mut self, grace: Duration) -> Self {
        self.acceptor = self.acceptor.end_revoked_sessions(grace);
        self
    }

    /// Sets how long an authenticated peer waits for the inner service to become ready. Default: 10 seconds.
    ///
    /// After that its connection is closed with [`AcceptError::NotReady`](super::AcceptError::NotReady). Otherwise
    /// authenticated peers would accumulate behind a service that never becomes ready.
    #[must_use]
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }
}

impl<S, M, P: Clone> Layer<S> for ChallengeLayer<M, P> {
    type Service = Challenge<S, M, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Challenge::new(inner, self.acceptor.clone(), self.ready_timeout)
    }
}

impl<M, P: Clone> Clone for ChallengeLayer<M, P> {
    fn clone(&self) -> Self {
        Self { acceptor: self.acceptor.clone(), ready_timeout: self.ready_timeout }
    }
}

impl<M: fmt::Debug, P> fmt::Debug for ChallengeLayer<M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChallengeLayer")
            .field("acceptor", &self.acceptor)
            .field("ready_timeout", &self.ready_timeout)
            .finish()
    }
}
