use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::ServeError;
use crate::observe;

pin_project! {
    /// What a connection's task does: calls the service, and catches its panics. A task would catch them too, but then
    /// nobody knows whose connection it was.
    ///
    /// By hand, since an `async` block keeps room for what it was made of beside what it makes of that, and every
    /// pending handshake has one of these.
    pub(super) struct Session<S, R, A>
    where
        S: Service<R>,
    {
        addr: Option<A>,
        #[pin]
        state: State<S, R, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R, F> {
        // Called within the task, so that a panic of the call harms nobody else.
        Called { service: S, request: Option<R> },
        Responds {
            #[pin]
            response: F
        },
        // Dropped when it is over, since that may panic too.
        Over,
    }
}

/// How a connection's task ended.
pub(super) type Ended<E, A> = Result<(), ServeError<E, A>>;

impl<S: Service<R>, R, A> Session<S, R, A> {
    /// `service` is ready.
    pub(super) fn new(service: S, request: R, addr: A) -> Self {
        Self { addr: Some(addr), state: State::Called { service, request: Some(request) } }
    }
}

impl<S: Service<R>, R, A> Future for Session<S, R, A> {
    type Output = Ended<S::Error, A>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Nothing of the service is looked at again after a panic, but to drop it, which may panic as well.
        let polled = catch_unwind(AssertUnwindSafe(|| poll_response(this.state.as_mut(), cx)));
        if polled.is_err() {
            let _ = catch_unwind(AssertUnwindSafe(|| this.state.set(State::Over)));
        }
        let outcome = polled.map_or_else(|payload| Poll::Ready(Err(payload)), |poll| poll.map(Ok));
        let outcome = ready!(outcome);
        let addr = this.addr.take().expect("not polled after it was ready");
        Poll::Ready(match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Connection { addr, error }),
            Err(payload) => {
                observe::panicked();
                Err(ServeError::panicked(addr, &*payload))
            }
        })
    }
}

fn poll_response<S: Service<R>, R>(
    mut state: Pin<&mut State<S, R, S::Future>>,
    cx: &mut Context<'_>,
) -> Poll<Result<S::Response, S::Error>> {
    loop {
        match state.as_mut().project() {
            StateProj::Called { service, request } => {
                let response = service.call(request.take().expect("called once"));
                state.set(State::Responds { response });
            }
            StateProj::Responds { response } => {
                let outcome = ready!(response.poll(cx));
                state.set(State::Over);
                return Poll::Ready(outcome);
            }
            StateProj::Over => panic!("polled after it was ready"),
        }
    }
}
