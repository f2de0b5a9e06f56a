use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::encode::TAG_LEN;
use super::frame::{Frame, MAX_MESSAGE_LEN};
use super::message::{ACCEPTED, Content, Message, REFUSED, VERSION};
use crate::error::HandshakeError;
use crate::mechanism::decode_eof_strict;

/// The length of the length prefix.
const PREFIX_LEN: usize = 2;
/// The length of the longest frame that is read. It is larger than any message, see [`Frame`].
const MAX_FRAME_LEN: usize = 1024;

/// The length of the longest proof, with its prefix.
pub(super) const MAX_PROOF_LEN: usize = PREFIX_LEN + MAX_MESSAGE_LEN;
/// The length of the longest message of the server, a challenge or a positive verdict, with its prefix.
pub(super) const MAX_SERVER_MESSAGE_LEN: usize = PREFIX_LEN + 1 + TAG_LEN;

/// The codec of both sides: frames with a length prefix of two bytes.
#[derive(Debug)]
pub struct Codec(());

impl Codec {
    pub(super) const fn new() -> Self {
        Self(())
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, HandshakeError> {
        let Some(prefix) = buf.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len > MAX_FRAME_LEN {
            return Err(HandshakeError::malformed("the frame is longer than 1024 bytes"));
        }
        let Some(content) = buf.get(PREFIX_LEN..PREFIX_LEN + len) else { return Ok(None) };
        let frame = Frame::new(content);
        buf.advance(PREFIX_LEN + len);
        Ok(Some(frame))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}

impl Encoder<Message> for Codec {
    type Error = HandshakeError;

    fn encode(&mut self, message: Message, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        let mut put = |parts: &[&[u8]]| {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            buf.put_u16(u16::try_from(len).expect("no message is longer than 320 bytes"));
            for part in parts {
                buf.put_slice(part);
            }
        };
        match message.0 {
            Content::Challenge { nonce } => put(&[&[VERSION], &nonce]),
            Content::Proof { nonce, key_id, tag } => {
                let id = key_id.as_bytes();
                let len = u8::try_from(id.len()).expect("a key id has at most 255 bytes");
                put(&[&nonce, &[len], id, &tag]);
            }
            Content::Accepted { tag } => put(&[&[ACCEPTED], &tag]),
            Content::Refused => put(&[&[REFUSED]]),
        }
        Ok(())
    }
}
