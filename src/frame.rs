//! The frames of the handshakes of `mutual` and `noise`: a length of two bytes, big-endian, and as many bytes.

use std::fmt;

use bytes::{Buf as _, BufMut as _, BytesMut};

use crate::error::HandshakeError;

/// The length of the length prefix, in bytes.
pub(crate) const PREFIX_LEN: usize = 2;

/// The longest frame that is accepted, in bytes, without its length. Longer than any message, see [`Frame`].
const MAX_LEN: usize = 1024;

/// A frame of the peer, not parsed yet. `N` is the length of the longest message, in bytes.
///
/// A longer frame, which no message can be, is truncated and keeps its original length, so that the state machine can
/// refuse it as it refuses any other malformed message.
pub struct Frame<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Frame<N> {
    pub(crate) fn new(content: &[u8]) -> Self {
        let mut bytes = [0; N];
        let kept = content.len().min(N);
        bytes[..kept].copy_from_slice(&content[..kept]);
        Self { bytes, len: content.len() }
    }

    /// Takes the next frame from `buf`, if it is complete.
    pub(crate) fn decode(buf: &mut BytesMut) -> Result<Option<Self>, HandshakeError> {
        let Some(prefix) = buf.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len > MAX_LEN {
            return Err(HandshakeError::malformed("the frame is longer than 1024 bytes"));
        }
        let Some(content) = buf.get(PREFIX_LEN..PREFIX_LEN + len) else { return Ok(None) };
        let frame = Self::new(content);
        buf.advance(PREFIX_LEN + len);
        Ok(Some(frame))
    }

    /// Returns the bytes of the frame. `None` if it is longer than any message.
    pub(crate) fn content(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len)
    }

    /// Like [`content`](Self::content), to be decrypted in place.
    #[cfg(feature = "noise")]
    pub(crate) fn content_mut(&mut self) -> Option<&mut [u8]> {
        self.bytes.get_mut(..self.len)
    }
}

impl<const N: usize> fmt::Debug for Frame<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Appends one frame with these parts to `buf`.
pub(crate) fn encode(parts: &[&[u8]], buf: &mut BytesMut) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    buf.put_u16(u16::try_from(len).unwrap_or_else(|_| unreachable!("no message is longer than 320 bytes")));
    for part in parts {
        buf.put_slice(part);
    }
}
