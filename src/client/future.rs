use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};

use super::ConnectError;
use crate::connector::Connector;
use crate::error::HandshakeError;
use crate::handshake::Connect;
use crate::mechanism::{Client, Mechanism, PeerOf};
use crate::stream::Authenticated;
use crate::transport::Inspect;

pin_project! {
    /// The response of [`Answer`](super::Answer): the connection, then the handshake on it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and frees all that the handshake holds.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime that has its timer enabled, and when polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, IO, M: Mechanism, X> {
        #[pin]
        state: State<F, IO, M, X>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, IO, M: Mechanism, X> {
        Connecting {
            #[pin]
            connecting: F,
            connector: Connector<M, X>,
        },
        Handshaking {
            #[pin]
            connect: Connect<IO, M>,
        },
        Failed {
            error: Option<HandshakeError>,
        },
    }
}

impl<F, IO, M: Mechanism, X> ResponseFuture<F, IO, M, X> {
    pub(super) fn connecting(connecting: F, connector: Connector<M, X>) -> Self {
        Self { state: State::Connecting { connecting, connector } }
    }

    pub(super) fn failed(error: HandshakeError) -> Self {
        Self { state: State::Failed { error: Some(error) } }
    }
}

impl<F, IO, E, M, X> Future for ResponseFuture<F, IO, M, X>
where
    F: Future<Output = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Unpin,
    M: Mechanism<Role = Client>,
    X: Inspect<IO>,
{
    type Output = Result<Authenticated<IO, PeerOf<M>>, ConnectError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Connecting { connecting, connector } => {
                    let io = ready!(connecting.poll(cx)).map_err(ConnectError::Connect)?;
                    // connected -> handshake
                    State::Handshaking { connect: connector.connect(io) }
                }
                StateProj::Handshaking { connect } => {
                    return connect.poll(cx).map_err(ConnectError::Handshake);
                }
                StateProj::Failed { error } => {
                    let error = error.take().expect("polled after it was ready");
                    return Poll::Ready(Err(ConnectError::Handshake(error)));
                }
            };
            state.set(next);
        }
    }
}

impl<F, IO, M: Mechanism, X> fmt::Debug for ResponseFuture<F, IO, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
