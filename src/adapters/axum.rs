//! [`Incoming`] as a listener of `axum::serve`, and [`PeerInfo`] as what its handlers can ask for.

use std::future::pending;
use std::io;

use axum::extract::connect_info::Connected;
use axum::extract::rejection::ExtensionRejection;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::incoming::Incoming;
use crate::peer_info::PeerInfo;
use crate::serve::Connection;
use crate::stream::Authenticated;

/// Handshakes go on beside it, so that none of them holds up `axum::serve`, which accepts one by one.
///
/// To shut down, give the signal to `axum::serve`: it drops the `Incoming`, whose [`ended`](Incoming::ended) then
/// waits for the sessions. After a signal of its own nothing more is accepted, and `accept` waits for ever.
///
/// # Panics
///
/// `accept`, if the task that accepts connections is gone: axum has no way to be told of an error, and a server that is
/// never called again should not look as if it ran.
impl<IO, P, A> Listener for Incoming<IO, P, A>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Send + 'static,
    A: Clone + Send + 'static,
{
    type Io = Authenticated<Connection<IO, A>, P>;
    type Addr = A;

    async fn accept(&mut self) -> (Self::Io, A) {
        match Self::accept(self).await {
            Ok(stream) => {
                let addr = stream.get_ref().addr().clone();
                (stream, addr)
            }
            Err(error) => {
                assert!(self.ended().await.is_some(), "{error}");
                pending().await
            }
        }
    }

    fn local_addr(&self) -> io::Result<A> {
        Ok(Self::local_addr(self).clone())
    }
}

impl<IO, P, A> Connected<IncomingStream<'_, Incoming<IO, P, A>>> for PeerInfo<P, A>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
{
    fn connect_info(stream: IncomingStream<'_, Incoming<IO, P, A>>) -> Self {
        Self::new(stream.io().peer().clone(), stream.remote_addr().clone())
    }
}

/// What `ConnectInfo<PeerInfo<P, A>>` extracts, without the wrapper: needs `into_make_service_with_connect_info`.
impl<S, P, A> FromRequestParts<S> for PeerInfo<P, A>
where
    S: Send + Sync,
    P: Clone + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
{
    type Rejection = ExtensionRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ExtensionRejection> {
        ConnectInfo::from_request_parts(parts, state).await.map(|ConnectInfo(info)| info)
    }
}
