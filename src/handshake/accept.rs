use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};

use super::drive::Drive;
use crate::admission::Slot;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Mechanism, PeerOf, Server};
use crate::observe::{Observed, Span};
use crate::stream::Authenticated;
use crate::transport::TransportInfo;

pin_project! {
    /// A handshake on the server's side: the future of [`Acceptor::accept`](crate::Acceptor::accept).
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and frees all that the handshake holds. It can't be taken up again.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime that has its timer enabled, and when polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct Accept<IO, M: Mechanism> {
        #[pin]
        drive: Drive<IO, M::Handshake, Server>,
        // None once it is over, and where it was not admitted.
        slot: Option<Slot>,
        observed: Observed,
    }
}

impl<IO, M: Mechanism> Accept<IO, M> {
    /// The span of the connection, to be entered where [`poll_admitted`](Self::poll_admitted) is called.
    pub(crate) fn span(&self) -> Span {
        self.observed.span()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = Server>> Accept<IO, M> {
    pub(crate) fn start(
        io: IO,
        mechanism: &M,
        timeout: Duration,
        info: TransportInfo,
        slot: Result<Slot, HandshakeError>,
    ) -> Self {
        match slot {
            Ok(slot) => {
                let observed = Observed::begin::<M>(&info, slot.failures());
                Self { drive: Drive::start(io, mechanism, timeout, info), slot: Some(slot), observed }
            }
            // Closed here and now, with nothing done for it.
            Err(error) => Self { drive: Drive::failed(error), slot: None, observed: Observed::nothing() },
        }
    }

    /// The same as polling it, but the span is not entered, and the slot is not given back yet.
    pub(crate) fn poll_admitted(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Admitted<IO, M>> {
        let mut this = self.project();
        let outcome = match this.drive.as_mut().poll(cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                ready!(this.slot.as_mut().map_or(Poll::Pending, |slot| slot.poll_revoked(cx)));
                Err(this.drive.cut_short(HandshakeErrorKind::Shed))
            }
        };
        let slot = this.slot.take();
        Poll::Ready(match (outcome, slot) {
            (Ok(stream), mut slot) => {
                if let Some(slot) = &mut slot {
                    slot.prove();
                }
                this.observed.succeeded::<M::Handshake>(stream.peer());
                Ok((stream, slot))
            }
            (Err(error), slot) => {
                if let Some(slot) = slot {
                    slot.failed(error.kind());
                }
                this.observed.failed(&error);
                Err(error)
            }
        })
    }
}

/// A stream and the place that it takes among those that are pending, until the inner service is called.
pub(crate) type Admitted<IO, M> = Result<(Authenticated<IO, PeerOf<M>>, Option<Slot>), HandshakeError>;

impl<IO: AsyncRead + AsyncWrite + Unpin, M: Mechanism<Role = Server>> Future for Accept<IO, M> {
    type Output = Result<Authenticated<IO, PeerOf<M>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let span = self.span();
        let _entered = span.enter();
        self.poll_admitted(cx).map_ok(|(stream, _)| stream)
    }
}

impl<IO, M: Mechanism> fmt::Debug for Accept<IO, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(feature = "tracing", feature = "metrics"))))]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::mechanism::one_way;

    #[test]
    fn who_does_not_look_pays_nothing() {
        #[expect(dead_code, reason = "only its size counts")]
        struct Unobserved<IO, M: Mechanism> {
            drive: Drive<IO, M::Handshake, Server>,
            slot: Option<Slot>,
        }
        assert_eq!(
            size_of::<Accept<DuplexStream, one_way::Server>>(),
            size_of::<Unobserved<DuplexStream, one_way::Server>>()
        );
    }
}
