use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};

use super::drive::Drive;
use crate::error::HandshakeError;
use crate::mechanism::{Client, Mechanism, PeerOf};
use crate::stream::Authenticated;
use crate::transport::TransportInfo;

pin_project! {
    /// A handshake on the client's side: the future of [`Connector::connect`](crate::Connector::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and frees all that the handshake holds. It can't be taken up again.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime that has its timer enabled, and when polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct Connect<IO, M: Mechanism> {
        #[pin]
        drive: Drive<IO, M::Handshake, Client>,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = Client>> Connect<IO, M> {
    pub(crate) fn start(io: IO, mechanism: &M, timeout: Duration, info: TransportInfo) -> Self {
        Self { drive: Drive::start(io, mechanism, timeout, info) }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = Client>> Future for Connect<IO, M> {
    type Output = Result<Authenticated<IO, PeerOf<M>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().drive.poll(cx)
    }
}

impl<IO, M: Mechanism> fmt::Debug for Connect<IO, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}
