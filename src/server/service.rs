use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use super::{AcceptError, ResponseFuture};
use crate::acceptor::Acceptor;
use crate::error::BoxError;
use crate::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
use crate::prepare::{NoPrepare, Prepare};
use crate::stream::Authenticated;
use crate::transport::Transport;

/// A service of fresh connections that calls the inner service with those whose peer has proven itself.
///
/// Created by [`ChallengeLayer`](super::ChallengeLayer).
pub struct Challenge<S, M, P = NoPrepare> {
    inner: S,
    acceptor: Acceptor<M, P>,
    ready_timeout: Duration,
}

impl<S, M, P> Challenge<S, M, P> {
    pub(super) const fn new(inner: S, acceptor: Acceptor<M, P>, ready_timeout: Duration) -> Self {
        Self { inner, acceptor, ready_timeout }
    }

    /// Returns a reference to the inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, IO, M, P> Service<IO> for Challenge<S, M, P>
where
    S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>, Error: Into<BoxError>> + Clone,
    IO: Transport,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
    M: Mechanism<Role = ServerRole>,
{
    type Response = S::Response;
    type Error = AcceptError;
    type Future = ResponseFuture<S, IO, M, P>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AcceptError>> {
        // Always ready, and reserves nothing of the inner service: an unauthenticated peer that stalls would hold the
        // reservation for as long as a handshake may take. The inner service is driven to readiness afterwards.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, io: IO) -> Self::Future {
        // A clone will do, since the original has not been driven to readiness.
        let accept = self.acceptor.accept(io);
        let revoked_grace = self.acceptor.revoked_grace();
        ResponseFuture::new(accept, self.inner.clone(), self.ready_timeout, revoked_grace)
    }
}

impl<S: Clone, M, P: Clone> Clone for Challenge<S, M, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), acceptor: self.acceptor.clone(), ready_timeout: self.ready_timeout }
    }
}

impl<S: fmt::Debug, M: fmt::Debug, P> fmt::Debug for Challenge<S, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge")
            .field("inner", &self.inner)
            .field("acceptor", &self.acceptor)
            .field("ready_timeout", &self.ready_timeout)
            .finish()
    }
}
