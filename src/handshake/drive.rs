use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::exchange::Exchange;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{self, Handshake as _, Mechanism, PeerOf, StreamOf};
use crate::stream::Authenticated;
use crate::time::poll_timer;
use crate::transport::TransportInfo;

pin_project! {
    /// An exchange with its deadline and the shutdown signal.
    pub(super) struct Drive<IO, M: Mechanism> {
        #[pin]
        exchange: Exchange<IO, M>,
        #[pin]
        deadline: Sleep,
        #[pin]
        cancelled: Option<WaitForCancellationFutureOwned>,
        shutdown: Option<CancellationToken>,
    }
}

impl<IO, M: Mechanism> Drive<IO, M> {
    pub(super) fn is_looking_up(&self) -> bool {
        self.exchange.is_looking_up()
    }

    pub(super) fn shutdown_token(&self) -> Option<&CancellationToken> {
        self.shutdown.as_ref()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism> Drive<IO, M> {
    /// Creates one that has failed already.
    pub(super) fn failed(error: HandshakeError) -> Self {
        Self {
            exchange: Exchange::failed(error),
            deadline: sleep(Duration::ZERO),
            cancelled: None,
            shutdown: None,
        }
    }

    /// Starts the mechanism and the deadline.
    pub(super) fn start(io: IO, mechanism: &M, deadline: Instant, info: TransportInfo) -> Self {
        let start = mechanism::Context::of(info.channel_binding, |cx| mechanism.start(cx));
        Self {
            exchange: Exchange::new(io, start),
            deadline: sleep_until(deadline),
            cancelled: info.shutdown.clone().map(CancellationToken::cancelled_owned),
            shutdown: info.shutdown,
        }
    }

    /// Returns the error of a peer that has been refused and still reads the verdict.
    pub(super) fn refused(&self) -> Option<&HandshakeError> {
        self.exchange.refused()
    }

    /// Ends the handshake for a reason outside of it.
    pub(super) fn cut_short(self: Pin<&mut Self>, kind: HandshakeErrorKind) -> HandshakeError {
        self.project().exchange.cut_short(kind)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism> Future for Drive<IO, M> {
    type Output = Result<Authenticated<StreamOf<M, IO>, PeerOf<M>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // The exchange is polled before the timer: if both are ready, the handshake was in time.
        if let Poll::Ready(outcome) = this.exchange.as_mut().poll(cx) {
            return Poll::Ready(outcome.map(|completed| {
                let revocation = M::Handshake::revocation(&completed.peer).cloned();
                Authenticated::new(
                    completed.io,
                    completed.read_ahead,
                    completed.peer,
                    this.shutdown.take(),
                    revocation,
                )
            }));
        }
        let kind = if this.cancelled.as_pin_mut().is_some_and(|cancelled| cancelled.poll(cx).is_ready()) {
            HandshakeErrorKind::ShuttingDown
        } else if poll_timer(this.deadline, cx).is_ready() {
            HandshakeErrorKind::TimedOut
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Err(this.exchange.cut_short(kind)))
    }
}
