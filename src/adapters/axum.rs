//! [`Incoming`] as a listener of `axum::serve`, and [`PeerInfo`] as an extractor.

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::future::pending;
use std::io;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::debug_as_display;
use crate::incoming::Incoming;
use crate::peer_info::PeerInfo;
use crate::stream::Authenticated;

/// Handshakes run in the background, so none of them delays `axum::serve`, which accepts one connection at a time.
///
/// To shut down, give the signal to `axum::serve`: it drops the `Incoming`, whose [`closed`](Incoming::closed) then waits
/// for the sessions. If the signal is given to the `Incoming` instead, nothing more is accepted, and `axum::serve` waits
/// forever.
///
/// # Panics
///
/// `accept` panics if the background task is gone. axum's trait cannot return an error, and a server that accepts no
/// connections must not look as if it were running.
impl<T, P, A> Listener for Incoming<T, P, A>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Send + 'static,
    A: Clone + Send + 'static,
{
    type Io = Authenticated<T, P>;
    type Addr = A;

    async fn accept(&mut self) -> (Self::Io, A) {
        match self.accept_with_addr().await {
            Ok(accepted) => accepted,
            Err(error) => {
                assert!(self.closed().await.is_some(), "{error}");
                pending().await
            }
        }
    }

    fn local_addr(&self) -> io::Result<A> {
        Ok(Self::local_addr(self).clone())
    }
}

impl<T, P, A> Connected<IncomingStream<'_, Incoming<T, P, A>>> for PeerInfo<P, A>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
{
    fn connect_info(stream: IncomingStream<'_, Incoming<T, P, A>>) -> Self {
        Self::new(stream.io().peer().clone(), stream.remote_addr().clone())
    }
}

/// Extracts what `ConnectInfo<PeerInfo<P, A>>` extracts. Needs `into_make_service_with_connect_info`.
impl<S, P, A> FromRequestParts<S> for PeerInfo<P, A>
where
    S: Send + Sync,
    P: Clone + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
{
    type Rejection = PeerInfoRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, PeerInfoRejection> {
        let found = ConnectInfo::from_request_parts(parts, state).await;
        found.map(|ConnectInfo(info)| info).map_err(|_| PeerInfoRejection { expected: type_name::<Self>() })
    }
}

/// The rejection of the extractor [`PeerInfo`]: the server was not set up to provide this type.
///
/// The response is `500 Internal Server Error`. Its text names the type that the handler expects.
pub struct PeerInfoRejection {
    expected: &'static str,
}

impl fmt::Display for PeerInfoRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected } = self;
        write!(
            f,
            "no {expected} for this connection: serve with into_make_service_with_connect_info::<{expected}>(); \
             the peer type must be that of the mechanism, including the type of the keys' metadata"
        )
    }
}

debug_as_display!(PeerInfoRejection);

impl Error for PeerInfoRejection {}

impl IntoResponse for PeerInfoRejection {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
