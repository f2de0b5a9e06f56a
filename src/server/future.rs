use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower_service::Service;

use super::AcceptError;
use crate::admission::Slot;
use crate::error::BoxError;
use crate::handshake::Accept;
use crate::key::Revocation;
use crate::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
use crate::observe::Span;
use crate::prepare::{NoPrepare, Prepare};
use crate::revoked_sessions::End;
use crate::stream::Authenticated;
use crate::time::{after, poll_timer};
use crate::transport::Transport;

pin_project! {
    /// The response future of [`Challenge`](super::Challenge): runs the handshake, then the inner service.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection, during the handshake as well as during the response.
    ///
    /// # Panics
    ///
    /// Panics when polled outside a tokio runtime with the time driver enabled, and when polled after completion.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<S, IO, M, P = NoPrepare>
    where
        S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>>,
        M: Mechanism,
        P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Unpin>,
    {
        #[pin]
        state: State<S, IO, M, P, StreamOf<M, P::Stream>, S::Future>,
        ready_timeout: Duration,
        revoked_grace: Option<Duration>,
        span: Span,
    }

    impl<S, IO, M, P> PinnedDrop for ResponseFuture<S, IO, M, P>
    where
        S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>>,
        M: Mechanism,
        P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Unpin>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // What an aborted session logs belongs to the span, too.
            let _entered = this.span.enter();
            this.state.set(State::Over);
        }
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, IO, M: Mechanism, P: Prepare<IO>, T, F> {
        Handshaking {
            #[pin]
            accept: Accept<IO, M, P>,
            service: Option<S>,
        },
        Waiting {
            stream: Option<Authenticated<T, PeerOf<M>>>,
            // Kept until the inner service is called: an authenticated peer that waits here counts as in flight.
            slot: Option<Slot>,
            service: S,
            #[pin]
            deadline: Sleep,
            #[pin]
            shutdown: Option<WaitForCancellationFutureOwned>,
        },
        Called {
            #[pin]
            response: F,
            // Set if the session ends when its key is revoked.
            end: Option<Pin<Box<End>>>,
        },
        // The stream is closed when the future completes, not when it is dropped.
        Over,
    }
}

impl<S, IO, M, P> ResponseFuture<S, IO, M, P>
where
    S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>>,
    M: Mechanism,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Unpin>,
{
    pub(super) fn new(
        accept: Accept<IO, M, P>,
        service: S,
        ready_timeout: Duration,
        revoked_grace: Option<Duration>,
    ) -> Self {
        let span = accept.span();
        let state = State::Handshaking { accept, service: Some(service) };
        Self { state, ready_timeout, revoked_grace, span }
    }
}

impl<S, IO, M, P> Future for ResponseFuture<S, IO, M, P>
where
    S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>, Error: Into<BoxError>>,
    M: Mechanism<Role = ServerRole>,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
{
    type Output = Result<S::Response, AcceptError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _entered = this.span.enter();
        loop {
            let outcome = match this.state.as_mut().project() {
                StateProj::Handshaking { accept, service } => match ready!(accept.poll_admitted(cx)) {
                    Ok((stream, slot)) => {
                        // handshake over -> inner service driven to readiness
                        let waiting = State::Waiting {
                            shutdown: stream
                                .shutdown_token()
                                .cloned()
                                .map(CancellationToken::cancelled_owned),
                            stream: Some(stream),
                            slot,
                            service: service.take().expect("set until the handshake is over"),
                            deadline: sleep_until(after(Instant::now(), *this.ready_timeout)),
                        };
                        this.state.set(waiting);
                        continue;
                    }
                    Err(error) => Err(AcceptError::Handshake(error)),
                },
                StateProj::Waiting { stream, slot, service, deadline, shutdown } => {
                    match service.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {
                            // inner service ready -> called
                            let stream = stream.take().expect("set until the service is called");
                            drop(slot.take());
                            if stream.revocation().is_some_and(Revocation::is_revoked) {
                                // Revoked while it waited for the service.
                                Err(AcceptError::Revoked)
                            } else {
                                let grace = this.revoked_grace.zip(stream.revocation());
                                let end =
                                    grace.map(|(grace, revocation)| Box::pin(End::new(revocation, grace)));
                                let response = service.call(stream);
                                this.state.set(State::Called { response, end });
                                continue;
                            }
                        }
                        Poll::Ready(Err(error)) => Err(AcceptError::service(error)),
                        Poll::Pending => {
                            // After a shutdown no session is started: it would have to end at once.
                            if !shutdown.as_pin_mut().is_some_and(|shutdown| shutdown.poll(cx).is_ready()) {
                                ready!(poll_timer(deadline, cx));
                            }
                            Err(AcceptError::NotReady)
                        }
                    }
                }
                StateProj::Called { response, end } => match response.poll(cx) {
                    Poll::Ready(outcome) => outcome.map_err(AcceptError::service),
                    Poll::Pending => {
                        ready!(end.as_mut().map_or(Poll::Pending, |end| end.as_mut().poll(cx)));
                        Err(AcceptError::Revoked)
                    }
                },
                StateProj::Over => panic!("polled after completion"),
            };
            this.state.set(State::Over);
            return Poll::Ready(outcome);
        }
    }
}

impl<S, IO, M, P> fmt::Debug for ResponseFuture<S, IO, M, P>
where
    S: Service<Authenticated<StreamOf<M, P::Stream>, PeerOf<M>>>,
    M: Mechanism,
    P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Unpin>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(feature = "tracing", feature = "metrics"))))]
mod tests {
    use std::future::Ready;

    use tokio::io::DuplexStream;

    use super::*;
    use crate::one_way;

    struct Inner;

    impl<R> Service<R> for Inner {
        type Response = ();
        type Error = ();
        type Future = Ready<Result<(), ()>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
            unreachable!("never called")
        }

        fn call(&mut self, _: R) -> Self::Future {
            unreachable!("never called")
        }
    }

    #[test]
    fn disabled_observability_is_zero_sized() {
        #[expect(dead_code, reason = "only its size matters")]
        struct Unobserved {
            state:
                State<Inner, DuplexStream, one_way::Server, NoPrepare, DuplexStream, Ready<Result<(), ()>>>,
            ready_timeout: Duration,
            revoked_grace: Option<Duration>,
        }
        assert_eq!(
            size_of::<ResponseFuture<Inner, DuplexStream, one_way::Server>>(),
            size_of::<Unobserved>()
        );
    }
}
