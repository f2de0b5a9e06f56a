use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::ServeError;
use super::panic::{contain, discard};
use crate::error::BoxError;
use crate::observe;

pin_project! {
    /// The task of a connection: calls the service and catches its panics. tokio would catch them as well, but without
    /// the address of the connection.
    ///
    /// Written by hand, since an `async` block reserves memory for its captured values in addition to the future that
    /// it makes of them, and each in-flight handshake has one of these.
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
        // Called within the task, so that a panic of the call affects no other connection.
        Called { service: S, request: Option<R> },
        Responds {
            #[pin]
            response: F
        },
        // The response is dropped at completion, since that may panic, too.
        Over,
    }
}

/// The result of a connection's task.
pub(super) type Ended<A> = Result<(), ServeError<A>>;

impl<S: Service<R>, R, A> Session<S, R, A> {
    /// Creates the task. `service` must be ready.
    pub(super) fn new(service: S, request: R, addr: A) -> Self {
        Self { addr: Some(addr), state: State::Called { service, request: Some(request) } }
    }
}

impl<S: Service<R, Error: Into<BoxError>>, R, A> Future for Session<S, R, A> {
    type Output = Ended<A>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let polled = catch_unwind(AssertUnwindSafe(|| poll_response(this.state.as_mut(), cx)));
        if polled.is_err() {
            // After a panic the service is only dropped, which may panic as well.
            contain(|| this.state.set(State::Over));
        }
        let outcome = polled.map_or_else(|payload| Poll::Ready(Err(payload)), |poll| poll.map(Ok));
        let outcome = ready!(outcome);
        let addr = this.addr.take().expect("not polled after completion");
        Poll::Ready(match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Connection { addr, error }),
            Err(payload) => {
                observe::panicked();
                let error = ServeError::panicked(addr, &*payload);
                discard(payload);
                Err(error)
            }
        })
    }
}

/// Also drops the response and converts the error, since that may panic, too.
fn poll_response<S: Service<R, Error: Into<BoxError>>, R>(
    mut state: Pin<&mut State<S, R, S::Future>>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BoxError>> {
    loop {
        match state.as_mut().project() {
            StateProj::Called { service, request } => {
                let response = service.call(request.take().expect("called once"));
                state.set(State::Responds { response });
            }
            StateProj::Responds { response } => {
                let outcome = ready!(response.poll(cx));
                state.set(State::Over);
                return Poll::Ready(outcome.map(drop).map_err(Into::into));
            }
            StateProj::Over => panic!("polled after completion"),
        }
    }
}
