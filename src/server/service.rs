use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use super::{AcceptError, ResponseFuture};
use crate::acceptor::Acceptor;
use crate::mechanism::{Mechanism, PeerOf, Server};
use crate::stream::Authenticated;
use crate::transport::{AskStream, Inspect};

/// A service of fresh connections: each must prove itself before the inner service is called with it.
///
/// Made by [`ChallengeLayer`](super::ChallengeLayer).
pub struct Challenge<S, M, X = AskStream> {
    inner: S,
    acceptor: Acceptor<M, X>,
    ready_timeout: Duration,
}

impl<S, M, X> Challenge<S, M, X> {
    /// Puts `acceptor` in front of `inner`; a peer that has proven itself waits up to `ready_timeout` for it.
    pub const fn new(inner: S, acceptor: Acceptor<M, X>, ready_timeout: Duration) -> Self {
        Self { inner, acceptor, ready_timeout }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, IO, M, X> Service<IO> for Challenge<S, M, X>
where
    S: Service<Authenticated<IO, PeerOf<M>>> + Clone,
    IO: AsyncRead + AsyncWrite + Unpin,
    M: Mechanism<Role = Server>,
    X: Inspect<IO>,
{
    type Response = S::Response;
    type Error = AcceptError<S::Error>;
    type Future = ResponseFuture<S, IO, M>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The inner service is not asked, and nothing of it is reserved: whoever connects and stalls would hold what
        // was reserved for as long as a handshake may take. It is driven to readiness when the peer has proven itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, io: IO) -> Self::Future {
        // A clone is as good as the original here, since nobody has made the original ready.
        ResponseFuture::new(self.acceptor.accept(io), self.inner.clone(), self.ready_timeout)
    }
}

impl<S: Clone, M, X: Clone> Clone for Challenge<S, M, X> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), acceptor: self.acceptor.clone(), ready_timeout: self.ready_timeout }
    }
}

impl<S: fmt::Debug, M: fmt::Debug, X> fmt::Debug for Challenge<S, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge")
            .field("inner", &self.inner)
            .field("acceptor", &self.acceptor)
            .field("ready_timeout", &self.ready_timeout)
            .finish()
    }
}
