use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Proxied;
use super::header::{MAX_LEN, ProxyHeader};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::prepare::{Attribute, Progress};
use crate::time::{after, poll_timer};
use crate::transport::Transport;

pin_project! {
    /// Reads a header.
    #[derive(Debug)]
    pub struct ReadHeader<IO> {
        // `None` after completion.
        io: Option<IO>,
        buf: BytesMut,
        #[pin]
        timer: Sleep,
    }
}

impl<IO> ReadHeader<IO> {
    pub(super) fn new(io: IO, timeout: Duration) -> Self {
        let timer = sleep_until(after(Instant::now(), timeout));
        Self { io: Some(io), buf: BytesMut::new(), timer }
    }
}

impl<IO: AsyncRead + Transport + Unpin> Progress for ReadHeader<IO> {
    type Stream = Proxied<IO>;

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attribute: &mut Attribute<'_>,
    ) -> Poll<Result<Proxied<IO>, HandshakeError>> {
        let this = self.project();
        let header = loop {
            let io = this.io.as_mut().expect("not polled after completion");
            let mut chunk = [0; MAX_LEN];
            // Never more than the longest header: what follows is as much as the buffer holds.
            let mut read = ReadBuf::new(&mut chunk[..MAX_LEN - this.buf.len()]);
            match Pin::new(io).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    let error = HandshakeError::from(error);
                    // Some load balancers reset the connections of their health checks.
                    let is_probe = this.buf.is_empty() && error.kind() == HandshakeErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(if is_probe { error.into_probe() } else { error }));
                }
                Poll::Pending => {
                    ready!(poll_timer(this.timer, cx));
                    return Poll::Ready(Err(HandshakeError::with_detail(
                        HandshakeErrorKind::TimedOut,
                        "no PROXY protocol header in time, which is required from this address",
                    )));
                }
            }
            if read.filled().is_empty() {
                let kind = if this.buf.is_empty() {
                    HandshakeErrorKind::Probe
                } else {
                    HandshakeErrorKind::UnexpectedEof
                };
                return Poll::Ready(Err(kind.into()));
            }
            this.buf.extend_from_slice(read.filled());
            match ProxyHeader::take(this.buf) {
                Ok(Some(header)) => break header,
                Ok(None) => {}
                Err(detail) => return Poll::Ready(Err(HandshakeError::malformed(detail))),
            }
        };
        let attributed = match header.source() {
            // The health checks of HAProxy have a header about themselves in version 1.
            Some(source) if !attribute.is_peer_addr(source) => attribute.set_peer_addr(Some(source)),
            _ => attribute.set_health_check(),
        };
        let io = this.io.take().expect("not polled after completion");
        Poll::Ready(attributed.map(|()| Proxied::new(io, std::mem::take(this.buf), header)))
    }
}
