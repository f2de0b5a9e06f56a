use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};

use super::ConnectError;
use crate::connector::Connector;
use crate::error::{BoxError, HandshakeError};
use crate::handshake::Connect;
use crate::mechanism::{ClientRole, Mechanism, PeerOf, StreamOf};
use crate::stream::Authenticated;
use crate::transport::Transport;

pin_project! {
    /// The response future of [`Answer`](super::Answer): makes the connection, then runs the handshake on it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and releases everything that the handshake holds.
    ///
    /// # Panics
    ///
    /// Panics when polled outside a tokio runtime with the time driver enabled, and when polled after completion.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, IO, M: Mechanism> {
        #[pin]
        state: State<F, IO, M>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, IO, M: Mechanism> {
        Connecting {
            #[pin]
            connecting: F,
            connector: Connector<M>,
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

impl<F, IO, M: Mechanism> ResponseFuture<F, IO, M> {
    pub(super) fn connecting(connecting: F, connector: Connector<M>) -> Self {
        Self { state: State::Connecting { connecting, connector } }
    }

    pub(super) fn failed(error: HandshakeError) -> Self {
        Self { state: State::Failed { error: Some(error) } }
    }
}

impl<F, IO, E, M> Future for ResponseFuture<F, IO, M>
where
    F: Future<Output = Result<IO, E>>,
    E: Into<BoxError>,
    IO: AsyncRead + AsyncWrite + Transport + Unpin,
    M: Mechanism<Role = ClientRole>,
{
    type Output = Result<Authenticated<StreamOf<M, IO>, PeerOf<M>>, ConnectError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Connecting { connecting, connector } => {
                    let io = ready!(connecting.poll(cx)).map_err(ConnectError::connect)?;
                    // connected -> handshake
                    State::Handshaking { connect: connector.connect(io) }
                }
                StateProj::Handshaking { connect } => {
                    return connect.poll(cx).map_err(ConnectError::Handshake);
                }
                StateProj::Failed { error } => {
                    let error = error.take().expect("not polled after completion");
                    return Poll::Ready(Err(ConnectError::Handshake(error)));
                }
            };
            state.set(next);
        }
    }
}

impl<F, IO, M: Mechanism> fmt::Debug for ResponseFuture<F, IO, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
