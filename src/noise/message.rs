//! The messages of the handshake, in frames. Records have the same form.

use std::fmt;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use super::cipher::TAG_LEN;
use crate::error::HandshakeError;
use crate::frame::{self, PREFIX_LEN};
use crate::key::KeyId;
use crate::mechanism::decode_eof_strict;

pub(super) const PUBLIC_LEN: usize = 32;
/// A message of Noise in this handshake: a public key and the tag of an empty payload.
pub(super) const NOISE_LEN: usize = PUBLIC_LEN + TAG_LEN;
/// Version, suite and the length of the key id.
const HELLO_HEAD_LEN: usize = 3;

/// The longest message, in bytes: a HELLO with the longest id.
const MAX_MESSAGE_LEN: usize = HELLO_HEAD_LEN + KeyId::MAX_LEN + NOISE_LEN;

/// The longest message of each side, framing included.
pub(super) const MAX_CLIENT_LEN: usize = PREFIX_LEN + MAX_MESSAGE_LEN;
pub(super) const MAX_SERVER_LEN: usize = PREFIX_LEN + 1 + NOISE_LEN;

/// The version of the wire.
pub(super) const VERSION: u8 = 1;
/// The first byte of an ANSWER.
pub(super) const ACCEPTED: u8 = 1;
/// The only byte of a refusal.
pub(super) const REFUSED: u8 = 0;

/// A frame of the peer.
pub(super) type Frame = frame::Frame<MAX_MESSAGE_LEN>;

/// A message that is sent.
pub struct Message(pub(super) Content);

pub(super) enum Content {
    Hello {
        suite: u8,
        key_id: KeyId,
        noise: [u8; NOISE_LEN],
    },
    Answer {
        noise: [u8; NOISE_LEN],
    },
    Refused,
    /// The sealed FINISH: a type of one byte, and the tag.
    Finish {
        sealed: [u8; 1 + TAG_LEN],
    },
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Content::Hello { .. } => "Hello(..)",
            Content::Answer { .. } => "Answer(..)",
            Content::Refused => "Refused",
            Content::Finish { .. } => "Finish(..)",
        })
    }
}

/// A client's HELLO within its frame.
pub(super) struct Hello<'f> {
    pub(super) suite: u8,
    pub(super) key_id: &'f [u8],
    pub(super) public: &'f [u8; PUBLIC_LEN],
    pub(super) tag: &'f [u8; TAG_LEN],
}

impl<'f> Hello<'f> {
    pub(super) fn parse(content: &'f [u8]) -> Option<Self> {
        let (&[version, suite, len], rest) = content.split_first_chunk::<HELLO_HEAD_LEN>()?;
        let (key_id, noise) = rest.split_at_checked(len.into())?;
        let (public, tag) = split_noise(noise)?;
        (version == VERSION && !key_id.is_empty()).then_some(Self { suite, key_id, public, tag })
    }
}

/// A server's ANSWER within its frame.
pub(super) enum Answer<'f> {
    Accepted { public: &'f [u8; PUBLIC_LEN], tag: &'f [u8; TAG_LEN] },
    Refused,
}

impl<'f> Answer<'f> {
    pub(super) fn parse(content: &'f [u8]) -> Option<Self> {
        match content.split_first()? {
            (&ACCEPTED, noise) => {
                let (public, tag) = split_noise(noise)?;
                Some(Self::Accepted { public, tag })
            }
            (&REFUSED, []) => Some(Self::Refused),
            _ => None,
        }
    }
}

fn split_noise(noise: &[u8]) -> Option<(&[u8; PUBLIC_LEN], &[u8; TAG_LEN])> {
    let (public, tag) = noise.split_first_chunk()?;
    Some((public, tag.try_into().ok()?))
}

/// The codec of both sides. FINISH, the first record, has the form of a frame, so that it is read by the same codec, and
/// what follows it is left to the record layer.
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
            Content::Hello { suite, key_id, noise } => {
                let id = key_id.as_bytes();
                let len =
                    u8::try_from(id.len()).unwrap_or_else(|_| unreachable!("a key id has 1 to 255 bytes"));
                put(&[&[VERSION, suite, len], id, &noise]);
            }
            Content::Answer { noise } => put(&[&[ACCEPTED], &noise]),
            Content::Refused => put(&[&[REFUSED]]),
            Content::Finish { sealed } => put(&[&sealed]),
        }
        Ok(())
    }
}
