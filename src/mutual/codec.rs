use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use super::encode::{NONCE_LEN, TAG_LEN};
use super::message::{ACCEPTED, Content, Message, REFUSED, VERSION};
use crate::error::HandshakeError;
use crate::frame::{self, PREFIX_LEN};
use crate::key::KeyId;
use crate::mechanism::decode_eof_strict;

/// The length of the longest message: a proof with the longest id.
const MAX_MESSAGE_LEN: usize = NONCE_LEN + 1 + KeyId::MAX_LEN + TAG_LEN;
/// The length of the longest proof, with its prefix.
pub(super) const MAX_PROOF_LEN: usize = PREFIX_LEN + MAX_MESSAGE_LEN;
/// The length of the longest message of the server, a challenge or a positive verdict, with its prefix.
pub(super) const MAX_SERVER_MESSAGE_LEN: usize = PREFIX_LEN + 1 + TAG_LEN;

/// A frame of the peer.
pub(super) type Frame = frame::Frame<MAX_MESSAGE_LEN>;

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
        Frame::decode(buf)
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}

impl Encoder<Message> for Codec {
    type Error = HandshakeError;

    fn encode(&mut self, message: Message, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        let mut put = |parts: &[&[u8]]| frame::encode(parts, buf);
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
