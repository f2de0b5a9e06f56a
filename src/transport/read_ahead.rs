use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::forward_async_write;

/// A stream of which some bytes were read already. They are read first.
#[derive(Debug)]
pub(crate) struct ReadAhead<IO> {
    pub(crate) io: IO,
    // Without memory of its own after it was read.
    bytes: BytesMut,
}

impl<IO> ReadAhead<IO> {
    pub(crate) fn new(io: IO, bytes: BytesMut) -> Self {
        let bytes = if bytes.is_empty() { BytesMut::new() } else { bytes };
        Self { io, bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_parts(self) -> (IO, BytesMut) {
        (self.io, self.bytes)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes[..len]);
        self.bytes.advance(len);
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

forward_async_write!([] ReadAhead<IO>);
