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
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, PeerOf, Server};
use crate::observe::Span;
use crate::stream::Authenticated;
use crate::time::{after, poll_timer};

pin_project! {
    /// The response of [`Challenge`](super::Challenge): the handshake, then the inner service's response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the connection, in whichever of the two it is.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime that has its timer enabled, and when polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<S, IO, M>
    where
        S: Service<Authenticated<IO, PeerOf<M>>>,
        M: Mechanism,
    {
        #[pin]
        state: State<S, IO, M, S::Future>,
        ready_timeout: Duration,
        span: Span,
    }

    impl<S, IO, M> PinnedDrop for ResponseFuture<S, IO, M>
    where
        S: Service<Authenticated<IO, PeerOf<M>>>,
        M: Mechanism,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // A session that is aborted may have something to say, too.
            let _entered = this.span.enter();
            this.state.set(State::Over);
        }
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, IO, M: Mechanism, F> {
        Handshaking {
            #[pin]
            accept: Accept<IO, M>,
            service: Option<S>,
        },
        Waiting {
            stream: Option<Authenticated<IO, PeerOf<M>>>,
            // Who waits here has proven itself, but is nobody's yet.
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
        },
        // The stream is closed when the future is ready, not when it is dropped.
        Over,
    }
}

impl<S, IO, M> ResponseFuture<S, IO, M>
where
    S: Service<Authenticated<IO, PeerOf<M>>>,
    M: Mechanism,
{
    pub(super) fn new(accept: Accept<IO, M>, service: S, ready_timeout: Duration) -> Self {
        let span = accept.span();
        Self { state: State::Handshaking { accept, service: Some(service) }, ready_timeout, span }
    }
}

impl<S, IO, M> Future for ResponseFuture<S, IO, M>
where
    S: Service<Authenticated<IO, PeerOf<M>>>,
    IO: AsyncRead + AsyncWrite + Unpin,
    M: Mechanism<Role = Server>,
{
    type Output = Result<S::Response, AcceptError<S::Error>>;

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
                            let response = service.call(stream);
                            this.state.set(State::Called { response });
                            continue;
                        }
                        Poll::Ready(Err(error)) => Err(AcceptError::Service(error)),
                        Poll::Pending => {
                            // No session begins that is to end at once.
                            if !shutdown.as_pin_mut().is_some_and(|shutdown| shutdown.poll(cx).is_ready()) {
                                ready!(poll_timer(deadline, cx));
                            }
                            Err(AcceptError::NotReady)
                        }
                    }
                }
                StateProj::Called { response } => ready!(response.poll(cx)).map_err(AcceptError::Service),
                StateProj::Over => panic!("polled after it was ready"),
            };
            this.state.set(State::Over);
            return Poll::Ready(outcome);
        }
    }
}

impl<S, IO, M> fmt::Debug for ResponseFuture<S, IO, M>
where
    S: Service<Authenticated<IO, PeerOf<M>>>,
    M: Mechanism,
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
    use crate::mechanism::one_way;

    struct Inner;

    impl<R> Service<R> for Inner {
        type Response = ();
        type Error = ();
        type Future = Ready<Result<(), ()>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
            unreachable!("nobody calls it")
        }

        fn call(&mut self, _: R) -> Self::Future {
            unreachable!("nobody calls it")
        }
    }

    #[test]
    fn who_does_not_look_pays_nothing() {
        #[expect(dead_code, reason = "only its size counts")]
        struct Unobserved {
            state: State<Inner, DuplexStream, one_way::Server, Ready<Result<(), ()>>>,
            ready_timeout: Duration,
        }
        assert_eq!(
            size_of::<ResponseFuture<Inner, DuplexStream, one_way::Server>>(),
            size_of::<Unobserved>()
        );
    }
}
