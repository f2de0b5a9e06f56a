use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{Attribute, Prepare, Progress, Start};
use crate::error::HandshakeError;
use crate::transport::{Transport, TransportInfo};

/// Two steps in a row, from [`then_prepare`](crate::ChallengeLayer::then_prepare).
#[derive(Clone, Copy, Debug)]
pub struct Then<A, B> {
    pub(crate) first: A,
    pub(crate) second: B,
}

impl<IO, A, B> Prepare<IO> for Then<A, B>
where
    A: Prepare<IO, Stream: Transport>,
    B: Prepare<A::Stream> + Clone,
{
    type Stream = B::Stream;
    type Progress = ThenProgress<A::Progress, B, B::Progress>;

    fn start(&self, io: IO, info: &TransportInfo) -> Start<Self::Stream, Self::Progress> {
        match self.first.start(io, info) {
            Start::Ready(stream) => {
                let info = TransportInfo::from_stream(&stream);
                match self.second.start(stream, &info) {
                    Start::Ready(stream) => Start::Ready(stream),
                    Start::InProgress(second) => Start::InProgress(ThenProgress::Second { second }),
                }
            }
            Start::InProgress(first) => {
                Start::InProgress(ThenProgress::First { first, next: self.second.clone() })
            }
        }
    }

    fn defers_source(&self, info: &TransportInfo) -> bool {
        self.first.defers_source(info) || self.second.defers_source(info)
    }
}

pin_project! {
    #[project = ThenProj]
    #[derive(Debug)]
    pub enum ThenProgress<P, B, Q> {
        First {
            #[pin]
            first: P,
            next: B,
        },
        Second {
            #[pin]
            second: Q,
        },
    }
}

impl<P, B, Q> Progress for ThenProgress<P, B, Q>
where
    P: Progress<Stream: Transport>,
    B: Prepare<P::Stream, Progress = Q, Stream = Q::Stream>,
    Q: Progress,
{
    type Stream = Q::Stream;

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attribute: &mut Attribute<'_>,
    ) -> Poll<Result<Q::Stream, HandshakeError>> {
        loop {
            let second = match self.as_mut().project() {
                ThenProj::First { first, next } => {
                    let stream = ready!(first.poll(cx, attribute))?;
                    let info = TransportInfo::from_stream(&stream);
                    if next.defers_source(&info) {
                        attribute.defer_source()?;
                    }
                    match next.start(stream, &info) {
                        Start::Ready(stream) => return Poll::Ready(Ok(stream)),
                        Start::InProgress(second) => second,
                    }
                }
                ThenProj::Second { second } => return second.poll(cx, attribute),
            };
            // first step complete -> second step
            self.set(Self::Second { second });
        }
    }
}
