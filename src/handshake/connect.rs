use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::drive::Drive;
use crate::error::HandshakeError;
use crate::mechanism::{ClientRole, Mechanism, PeerOf, StreamOf};
use crate::observe::{Failures, Observed};
use crate::stream::Authenticated;
use crate::time::after;
use crate::transport::TransportInfo;

pin_project! {
    /// A handshake on the client's side: the future of [`Connector::connect`](crate::Connector::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and releases everything that the handshake holds. A handshake cannot be
    /// resumed.
    ///
    /// # Panics
    ///
    /// Panics when polled outside a tokio runtime with the time driver enabled, and when polled after completion.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct Connect<IO, M: Mechanism> {
        #[pin]
        drive: Drive<IO, M>,
        observed: Observed,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = ClientRole>> Connect<IO, M> {
    pub(crate) fn start(
        io: IO,
        mechanism: &M,
        timeout: Duration,
        info: TransportInfo,
        failures: &Failures,
    ) -> Self {
        let observed = Observed::begin::<M>(&info, failures);
        Self { drive: Drive::start(io, mechanism, after(Instant::now(), timeout), info), observed }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = ClientRole>> Future for Connect<IO, M> {
    type Output = Result<Authenticated<StreamOf<M, IO>, PeerOf<M>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let span = this.observed.span();
        let _entered = span.enter();
        let outcome = ready!(this.drive.poll(cx));
        match &outcome {
            Ok(stream) => this.observed.succeeded::<M::Handshake>(stream.peer()),
            Err(error) => this.observed.failed(error),
        }
        Poll::Ready(outcome)
    }
}

impl<IO, M: Mechanism> fmt::Debug for Connect<IO, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}
