use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use super::{Choose, ConnectError, ResponseFuture};
use crate::mechanism::{Client, Mechanism, PeerOf};
use crate::stream::Authenticated;
use crate::transport::Inspect;

/// A connector whose streams have answered the server's challenge.
///
/// Made by [`AnswerLayer`](super::AnswerLayer).
#[derive(Clone, Debug)]
pub struct Answer<S, C> {
    inner: S,
    choose: C,
}

impl<S, C> Answer<S, C> {
    /// Puts a handshake behind `inner`, with what `choose` has for the target.
    pub const fn new(inner: S, choose: C) -> Self {
        Self { inner, choose }
    }

    /// The connector within.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The connector within.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The connector within.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Target, C> Service<Target> for Answer<S, C>
where
    S: Service<Target, Response: AsyncRead + AsyncWrite + Unpin>,
    C: Choose<Target, Mechanism: Mechanism<Role = Client>, Inspect: Inspect<S::Response>>,
{
    type Response = Authenticated<S::Response, PeerOf<C::Mechanism>>;
    type Error = ConnectError<S::Error>;
    type Future = ResponseFuture<S::Future, S::Response, C::Mechanism, C::Inspect>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Forwarded: it is our own side that asks, and the handshake adds nothing that one would have to wait for.
        self.inner.poll_ready(cx).map_err(ConnectError::Connect)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        match self.choose.choose(&target) {
            Ok(connector) => ResponseFuture::connecting(self.inner.call(target), connector),
            Err(error) => ResponseFuture::failed(error),
        }
    }
}
