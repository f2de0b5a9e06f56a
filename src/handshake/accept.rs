use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::drive::Drive;
use crate::admission::Slot;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::Revocation;
use crate::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
use crate::observe::{Observed, Span};
use crate::prepare::{Attribute, Attribution, NoPrepare, Prepare, Progress, Start};
use crate::stream::Authenticated;
use crate::time::{after, poll_timer};
use crate::transport::{Transport, TransportInfo};

pin_project! {
    /// A handshake on the server's side: the future of [`Acceptor::accept`](crate::Acceptor::accept).
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
    pub struct Accept<IO, M: Mechanism, P: Prepare<IO> = NoPrepare> {
        #[pin]
        state: State<P::Stream, M, P::Progress>,
        // `None` after completion, and if the handshake was not admitted.
        slot: Option<Slot>,
        revoked_grace: Option<Duration>,
        observed: Observed,
    }

    impl<IO, M: Mechanism, P: Prepare<IO>> PinnedDrop for Accept<IO, M, P> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Dropped before completion. If the peer is at fault, the slot's own `Drop` penalizes it.
            if let Some(slot) = this.slot.take_if(|_| this.state.is_delayed_by_server()) {
                slot.release();
            }
        }
    }
}

pin_project! {
    #[project = StateProj]
    enum State<T, M: Mechanism, Q> {
        Preparing {
            #[pin]
            progress: Q,
            attribution: Attribution,
            mechanism: Arc<M>,
            info: TransportInfo,
            deadline: Instant,
            #[pin]
            timer: Sleep,
            #[pin]
            cancelled: Option<WaitForCancellationFutureOwned>,
        },
        Handshaking {
            #[pin]
            drive: Drive<T, M>,
        },
        Over,
    }
}

impl<T, M: Mechanism, Q> State<T, M, Q> {
    /// Returns whether it is not the peer's doing that the handshake has not completed.
    fn is_delayed_by_server(&self) -> bool {
        let (shutdown, is_looking_up) = match self {
            Self::Preparing { info, .. } => (info.shutdown.as_ref(), false),
            Self::Handshaking { drive } => (drive.shutdown_token(), drive.is_looking_up()),
            Self::Over => (None, false),
        };
        is_looking_up || shutdown.is_some_and(CancellationToken::is_cancelled)
    }
}

impl<IO, M: Mechanism, P: Prepare<IO>> Accept<IO, M, P> {
    /// Returns the span of the connection, to be entered around [`poll_admitted`](Self::poll_admitted).
    pub(crate) fn span(&self) -> Span {
        self.observed.span()
    }
}

impl<IO, M, P> Accept<IO, M, P>
where
    M: Mechanism<Role = ServerRole>,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
{
    pub(crate) fn start(
        io: IO,
        mechanism: &Arc<M>,
        prepare: &P,
        timeout: Duration,
        mut info: TransportInfo,
        slot: Result<Slot, HandshakeError>,
    ) -> Self {
        let slot = match slot {
            Ok(slot) => slot,
            // Closed without any work.
            Err(error) => {
                let state = State::Handshaking { drive: Drive::failed(error) };
                return Self { state, slot: None, revoked_grace: None, observed: Observed::nothing() };
            }
        };
        // The span gets the address once it is known whose it is.
        let peer_addr = info.peer_addr;
        let is_known = !prepare.defers_source(&info);
        info.peer_addr = peer_addr.filter(|_| is_known);
        let observed = Observed::begin::<M>(&info, slot.failures());
        info.peer_addr = peer_addr;
        let deadline = after(Instant::now(), timeout);
        let state = match prepare.start(io, &info) {
            Start::Ready(stream) => {
                State::Handshaking { drive: Drive::start(stream, &**mechanism, deadline, info) }
            }
            Start::InProgress(progress) => State::Preparing {
                progress,
                attribution: Attribution::new(peer_addr, is_known),
                mechanism: Arc::clone(mechanism),
                deadline,
                timer: sleep_until(deadline),
                cancelled: info.shutdown.clone().map(CancellationToken::cancelled_owned),
                info,
            },
        };
        Self { state, slot: Some(slot), revoked_grace: None, observed }
    }

    pub(crate) fn end_revoked_sessions(mut self, grace: Option<Duration>) -> Self {
        self.revoked_grace = grace;
        self
    }

    /// Like `poll`, but does not enter the span, and returns the slot instead of releasing it.
    pub(crate) fn poll_admitted(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Admitted<P::Stream, M>> {
        let outcome = ready!(self.as_mut().poll_outcome(cx));
        let mut this = self.project();
        // The key may have been revoked since it was looked up.
        let outcome = outcome.and_then(|stream| {
            if stream.revocation().is_some_and(Revocation::is_revoked) {
                Err(HandshakeErrorKind::Revoked.into())
            } else {
                Ok(stream)
            }
        });
        this.state.set(State::Over);
        let slot = this.slot.take();
        Poll::Ready(match (outcome, slot) {
            (Ok(mut stream), mut slot) => {
                if let Some(grace) = *this.revoked_grace {
                    stream.end_when_revoked(grace);
                }
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

    fn poll_outcome(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<P::Stream, M>> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Preparing {
                    progress,
                    attribution,
                    mechanism,
                    info,
                    deadline,
                    timer,
                    mut cancelled,
                } => {
                    let slot = this.slot.as_mut().expect("held until completion");
                    let mut attribute = Attribute { attribution, slot, observed: this.observed };
                    let prepared = progress.poll(cx, &mut attribute);
                    let Attribute { attribution, slot, observed } = attribute;
                    let error = match prepared {
                        Poll::Ready(Ok(stream)) => {
                            attribution.observe(observed);
                            let mut prepared = TransportInfo::from_stream(&stream);
                            // A step may return a stream that does not pass it on.
                            prepared.shutdown = prepared.shutdown.or_else(|| info.shutdown.take());
                            let drive = Drive::start(stream, &**mechanism, *deadline, prepared);
                            // prepared -> handshake
                            this.state.set(State::Handshaking { drive });
                            continue;
                        }
                        Poll::Ready(Err(error)) => attribution.explain(error),
                        Poll::Pending => {
                            let kind = if slot.poll_evicted(cx).is_ready() {
                                HandshakeErrorKind::Evicted
                            } else if cancelled.as_mut().as_pin_mut().is_some_and(|c| c.poll(cx).is_ready()) {
                                HandshakeErrorKind::ShuttingDown
                            } else {
                                ready!(poll_timer(timer, cx));
                                HandshakeErrorKind::TimedOut
                            };
                            HandshakeError::with_detail(kind, "in a step before the handshake")
                        }
                    };
                    attribution.observe(observed);
                    return Poll::Ready(Err(error));
                }
                StateProj::Handshaking { mut drive } => {
                    if let Poll::Ready(outcome) = drive.as_mut().poll(cx) {
                        return Poll::Ready(outcome);
                    }
                    // Charged now: a refused peer could hold the connection for as long as the deadline allows.
                    if let (Some(slot), Some(error)) = (this.slot.as_mut(), drive.refused()) {
                        slot.refuse(error.kind());
                    }
                    ready!(this.slot.as_mut().map_or(Poll::Pending, |slot| slot.poll_evicted(cx)));
                    return Poll::Ready(Err(drive.cut_short(HandshakeErrorKind::Evicted)));
                }
                StateProj::Over => panic!("polled after completion"),
            }
        }
    }
}

type Outcome<T, M> = Result<Authenticated<StreamOf<M, T>, PeerOf<M>>, HandshakeError>;

/// A stream with the slot that it occupies until the inner service is called.
pub(crate) type Admitted<T, M> =
    Result<(Authenticated<StreamOf<M, T>, PeerOf<M>>, Option<Slot>), HandshakeError>;

impl<IO, M, P> Future for Accept<IO, M, P>
where
    M: Mechanism<Role = ServerRole>,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
{
    type Output = Result<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let span = self.span();
        let _entered = span.enter();
        self.poll_admitted(cx).map_ok(|(stream, _)| stream)
    }
}

impl<IO, M: Mechanism, P: Prepare<IO>> fmt::Debug for Accept<IO, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(feature = "tracing", feature = "metrics"))))]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::one_way;

    /// A step that is not set takes no room either.
    #[test]
    fn disabled_observability_is_zero_sized() {
        #[expect(dead_code, reason = "only its size matters")]
        struct Unobserved<IO, M: Mechanism> {
            drive: Drive<IO, M>,
            slot: Option<Slot>,
            revoked_grace: Option<Duration>,
        }
        assert_eq!(
            size_of::<Accept<DuplexStream, one_way::Server>>(),
            size_of::<Unobserved<DuplexStream, one_way::Server>>()
        );
    }
}
