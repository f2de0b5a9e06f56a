use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::exchange::Exchange;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{self, Handshake, Mechanism, Role};
use crate::stream::Authenticated;
use crate::time::{after, poll_timer};
use crate::transport::TransportInfo;

pin_project! {
    /// An exchange, its one deadline, and the word that it is time to shut down.
    pub(super) struct Drive<IO, H: Handshake, R> {
        #[pin]
        exchange: Exchange<IO, H, R>,
        #[pin]
        deadline: Sleep,
        #[pin]
        cancelled: Option<WaitForCancellationFutureOwned>,
        shutdown: Option<CancellationToken>,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, H: Handshake, R: Role> Drive<IO, H, R> {
    /// Over before it began.
    pub(super) fn failed(error: HandshakeError) -> Self {
        Self {
            exchange: Exchange::failed(error),
            deadline: sleep(Duration::ZERO),
            cancelled: None,
            shutdown: None,
        }
    }

    /// Starts the mechanism now, and the clock with it.
    pub(super) fn start<M>(io: IO, mechanism: &M, timeout: Duration, info: TransportInfo) -> Self
    where
        M: Mechanism<Role = R, Handshake = H>,
    {
        let start = mechanism::Context::of(info.channel_binding, |cx| mechanism.start(cx));
        Self {
            exchange: Exchange::new(io, start),
            deadline: sleep_until(after(Instant::now(), timeout)),
            cancelled: info.shutdown.clone().map(CancellationToken::cancelled_owned),
            shutdown: info.shutdown,
        }
    }

    /// Ends it from outside.
    pub(super) fn cut_short(self: Pin<&mut Self>, kind: HandshakeErrorKind) -> HandshakeError {
        self.project().exchange.cut_short(kind)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, H: Handshake, R: Role> Future for Drive<IO, H, R> {
    type Output = Result<Authenticated<IO, H::Peer>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // The exchange before the timer: what is there in time counts, even where both are ready.
        if let Poll::Ready(outcome) = this.exchange.as_mut().poll(cx) {
            return Poll::Ready(outcome.map(|completed| {
                Authenticated::new(completed.io, completed.read_ahead, completed.peer, this.shutdown.take())
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
