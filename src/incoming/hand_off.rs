use std::convert::Infallible;
use std::future::{Ready, ready as ready_future};
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tower_service::Service;

/// The innermost service: hands what it is called with to whoever pulls. Ready when there is room.
pub(super) struct HandOff<T> {
    sender: PollSender<T>,
}

impl<T: Send + 'static> HandOff<T> {
    pub(super) fn new(sender: mpsc::Sender<T>) -> Self {
        Self { sender: PollSender::new(sender) }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Where whoever pulled is gone, what comes is dropped: nobody waits for nothing.
        self.sender.poll_reserve(cx).map(|_| ())
    }
}

impl<T: Send + 'static> Service<T> for HandOff<T> {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.poll_room(cx).map(Ok)
    }

    fn call(&mut self, stream: T) -> Self::Future {
        // Room has been reserved, if there is somebody to pull.
        let _ = self.sender.send_item(stream);
        ready_future(Ok(()))
    }
}

impl<T> Clone for HandOff<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

/// The outermost service: not ready while there is no room, so that nobody is accepted who would only have to wait.
pub(super) struct WhileRoom<S, T> {
    pub(super) inner: S,
    pub(super) room: HandOff<T>,
}

impl<S: Clone, T> Clone for WhileRoom<S, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), room: self.room.clone() }
    }
}

impl<S: Service<R>, R, T: Send + 'static> Service<R> for WhileRoom<S, T> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.room.poll_room(cx));
        // Only a look: a stranger must not hold the room for as long as a handshake may take.
        self.room.sender.abort_send();
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.inner.call(request)
    }
}
