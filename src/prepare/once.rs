use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{Attribute, Progress};
use crate::error::HandshakeError;
use crate::transport::{Transport, TransportInfo};

pin_project! {
    /// The future of a single step. Moves the slot if the new stream reports another address.
    #[derive(Debug)]
    pub struct Once<F> {
        #[pin]
        future: F,
    }
}

impl<F> Once<F> {
    pub(crate) fn new(future: F) -> Self {
        Self { future }
    }
}

impl<F, T, E> Progress for Once<F>
where
    F: Future<Output = Result<T, E>>,
    T: Transport,
    E: Into<HandshakeError>,
{
    type Stream = T;

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attribute: &mut Attribute<'_>,
    ) -> Poll<Result<T, HandshakeError>> {
        let stream = ready!(self.project().future.poll(cx)).map_err(Into::into)?;
        let reported = TransportInfo::from_stream(&stream).peer_addr;
        Poll::Ready(attribute.set_peer_addr(reported).map(|()| stream))
    }
}
