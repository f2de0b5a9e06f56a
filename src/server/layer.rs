use std::fmt;
use std::time::Duration;

use tower_layer::Layer;

use super::Challenge;
use crate::acceptor::Acceptor;
use crate::admission::Admission;
use crate::transport::AskStream;

/// Puts a handshake in front of a service of streams. Cheap to clone.
///
/// See the [module](super) for an example.
pub struct ChallengeLayer<M, X = AskStream> {
    acceptor: Acceptor<M, X>,
    ready_timeout: Duration,
}

impl<M> ChallengeLayer<M> {
    /// Challenges with this mechanism, within [10 seconds](crate::DEFAULT_TIMEOUT).
    pub fn new(mechanism: M) -> Self {
        Self::from_acceptor(Acceptor::new(mechanism))
    }
}

impl<M, X> ChallengeLayer<M, X> {
    /// Challenges as `acceptor` does.
    pub const fn from_acceptor(acceptor: Acceptor<M, X>) -> Self {
        Self { acceptor, ready_timeout: crate::DEFAULT_TIMEOUT }
    }

    /// Sets how long a whole handshake may take: see [`Acceptor::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.acceptor = self.acceptor.timeout(timeout);
        self
    }

    /// Sets who is admitted: see [`Acceptor::admission`].
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.acceptor = self.acceptor.admission(admission);
        self
    }

    /// Sets how to learn what surrounds a stream: see [`Acceptor::inspect`].
    #[must_use]
    pub fn inspect<Y>(self, inspect: Y) -> ChallengeLayer<M, Y> {
        ChallengeLayer { acceptor: self.acceptor.inspect(inspect), ready_timeout: self.ready_timeout }
    }

    /// Sets how long a peer that has proven itself may wait for the inner service to become ready, before its
    /// connection is closed with [`AcceptError::NotReady`](super::AcceptError::NotReady). Default: 10 seconds.
    ///
    /// Without it accepted peers would pile up behind a service that never is.
    #[must_use]
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }
}

impl<S, M, X: Clone> Layer<S> for ChallengeLayer<M, X> {
    type Service = Challenge<S, M, X>;

    fn layer(&self, inner: S) -> Self::Service {
        Challenge::new(inner, self.acceptor.clone(), self.ready_timeout)
    }
}

impl<M, X: Clone> Clone for ChallengeLayer<M, X> {
    fn clone(&self) -> Self {
        Self { acceptor: self.acceptor.clone(), ready_timeout: self.ready_timeout }
    }
}

impl<M: fmt::Debug, X> fmt::Debug for ChallengeLayer<M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChallengeLayer")
            .field("acceptor", &self.acceptor)
            .field("ready_timeout", &self.ready_timeout)
            .finish()
    }
}
