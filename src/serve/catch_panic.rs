use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// Resolves to the panic of the future within, if it has one. A task would catch it too, but then nobody knows
    /// whose connection it was.
    pub(super) struct CatchPanic<F> {
        // None once it is over: dropped here, since that may panic too.
        #[pin]
        future: Option<F>,
    }
}

impl<F> CatchPanic<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future: Some(future) }
    }
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Nothing of the future is looked at again after a panic.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let mut future = self.project().future;
            let poll = future.as_mut().as_pin_mut().expect("not polled after it was ready").poll(cx);
            if poll.is_ready() {
                future.set(None);
            }
            poll
        }));
        match polled {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(payload)),
        }
    }
}
