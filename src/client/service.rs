use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use super::choose::Choose;
use super::{ConnectError, ResponseFuture};
use crate::error::BoxError;
use crate::mechanism::{ClientRole, Mechanism, PeerOf, StreamOf};
use crate::stream::Authenticated;
use crate::transport::Transport;

/// A connector whose streams have completed the client's side of a handshake.
///
/// Created by [`AnswerLayer`](super::AnswerLayer).
///
/// If there is no mechanism for a target, the inner connector is not called. What its `poll_ready` has reserved, such as
/// the permit of a concurrency limit, then stays reserved until the next call, or until this service is dropped.
#[derive(Clone, Debug)]
pub struct Answer<S, C> {
    inner: S,
    choose: C,
}

impl<S, C> Answer<S, C> {
    pub(super) const fn new(inner: S, choose: C) -> Self {
        Self { inner, choose }
    }

    /// Returns a reference to the inner connector.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner connector.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner connector.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Target, C> Service<Target> for Answer<S, C>
where
    S: Service<Target, Response: AsyncRead + AsyncWrite + Transport + Unpin, Error: Into<BoxError>>,
    C: Choose<Target, Mechanism: Mechanism<Role = ClientRole>>,
{
    type Response = Authenticated<StreamOf<C::Mechanism, S::Response>, PeerOf<C::Mechanism>>;
    type Error = ConnectError;
    type Future = ResponseFuture<S::Future, S::Response, C::Mechanism>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        // Forwarded: the caller is on this side, and the handshake needs nothing that one could wait for.
        self.inner.poll_ready(cx).map_err(ConnectError::connect)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        match self.choose.choose(&target) {
            Ok(connector) => ResponseFuture::connecting(self.inner.call(target), connector),
            Err(error) => ResponseFuture::failed(error),
        }
    }
}
