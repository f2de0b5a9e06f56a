use std::fmt;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::HandshakeError;
use crate::mechanism::decode_eof_strict;

const PREFIX_LEN: usize = 4;
/// The length of the longest message that CPython accepts during the handshake.
const MAX_LEN: usize = 256;

/// The length of the longest message of the handshake, with its prefix.
pub(super) const MAX_RECV_LEN: usize = PREFIX_LEN + MAX_LEN;
/// The length of the longest message that this side sends, a challenge, with its prefix.
pub(super) const MAX_SEND_LEN: usize = PREFIX_LEN + MAX_SENT_LEN;

/// An upper bound of the messages that this side sends, in bytes. The longest is a challenge, which has 59.
const MAX_SENT_LEN: usize = 64;

/// A message of the handshake, of at most `MAX` bytes.
#[derive(Clone)]
pub struct Frame<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

/// A message of the peer.
pub(super) type Received = Frame<MAX_LEN>;

/// A message of this side.
pub(super) type Sent = Frame<MAX_SENT_LEN>;

impl<const MAX: usize> Frame<MAX> {
    /// Creates a message from these parts.
    ///
    /// # Panics
    ///
    /// Panics if the parts have more than `MAX` bytes.
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

/// The codec of both sides during the handshake.
///
/// The form for long messages, a length of -1 and eight more bytes, is an error: no message of the handshake needs it.
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
            .ok_or_else(|| HandshakeError::malformed("the length of the message is not between 0 and 256"))?;
        let Some(content) = buf.get(PREFIX_LEN..PREFIX_LEN + len) else { return Ok(None) };
        let frame = Frame::of(&[content]);
        buf.advance(PREFIX_LEN + len);
        Ok(Some(frame))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Received>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
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
