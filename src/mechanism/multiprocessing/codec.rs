use std::fmt;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::HandshakeError;
use crate::mechanism::whole_or_truncated;

const PREFIX_LEN: usize = 4;
/// What CPython receives at most while it authenticates.
const MAX_LEN: usize = 256;

/// The longest message of the handshake, framing included.
pub(super) const LONGEST_RECEIVED: usize = PREFIX_LEN + MAX_LEN;
/// A challenge, which is longer than any answer or verdict, framing included.
pub(super) const LONGEST_SENT: usize = PREFIX_LEN + MAX_SENT_LEN;

/// The longest message that this side sends, in bytes: a challenge has 59.
const MAX_SENT_LEN: usize = 64;

/// A message of the handshake, of at most `MAX` bytes.
#[derive(Clone)]
pub struct Frame<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

/// A message as it came.
pub type Received = Frame<MAX_LEN>;

/// A message to be sent.
pub type Sent = Frame<MAX_SENT_LEN>;

impl<const MAX: usize> Frame<MAX> {
    /// A message of these parts, which are of this crate's making and have room.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut frame = Self { bytes: [0; MAX], len: 0 };
        for part in parts {
            frame.bytes[frame.len..frame.len + part.len()].copy_from_slice(part);
            frame.len += part.len();
        }
        frame
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const MAX: usize> fmt::Debug for Frame<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The framing of the handshake, of both sides. The form for long messages, a length of -1 and eight bytes more, is
/// refused: no message of the handshake needs it.
#[derive(Debug)]
pub struct Codec(());

impl Codec {
    pub(super) const fn new() -> Self {
        Self(())
    }
}

impl Decoder for Codec {
    type Item = Received;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Received>, HandshakeError> {
        let Some(prefix) = buf.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = usize::try_from(i32::from_be_bytes(*prefix))
            .ok()
            .filter(|&len| len <= MAX_LEN)
            .ok_or_else(|| HandshakeError::malformed("a length that is not between 0 and 256"))?;
        let Some(content) = buf.get(PREFIX_LEN..PREFIX_LEN + len) else { return Ok(None) };
        let frame = Frame::of(&[content]);
        buf.advance(PREFIX_LEN + len);
        Ok(Some(frame))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Received>, HandshakeError> {
        whole_or_truncated(self.decode(buf)?, buf)
    }
}

impl Encoder<Sent> for Codec {
    type Error = HandshakeError;

    fn encode(&mut self, frame: Sent, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        let content = frame.as_bytes();
        buf.put_i32(i32::try_from(content.len()).expect("a frame has at most 256 bytes"));
        buf.put_slice(content);
        Ok(())
    }
}
