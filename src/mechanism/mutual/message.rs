use std::fmt;

use super::encode::{NONCE_LEN, Nonce, Tag};
use super::frame::Frame;
use crate::key::KeyId;

/// The first byte of a challenge.
pub(super) const VERSION: u8 = 1;
/// The first byte of a verdict.
pub(super) const ACCEPTED: u8 = 1;
/// All of the other verdict.
pub(super) const REFUSED: u8 = 0;

/// What is sent, by either side.
#[derive(Clone)]
pub struct Message(pub(super) Content);

#[derive(Clone)]
pub(super) enum Content {
    Challenge { nonce: Nonce },
    Proof { nonce: Nonce, key_id: KeyId, tag: Tag },
    Accepted { tag: Tag },
    Refused,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Content::Challenge { .. } => "Challenge(..)",
            Content::Proof { .. } => "Proof(..)",
            Content::Accepted { .. } => "Accepted(..)",
            Content::Refused => "Refused",
        })
    }
}

/// A client's proof, as it lies in its frame.
pub(super) struct Proof<'f> {
    pub(super) nonce: &'f Nonce,
    pub(super) key_id: &'f [u8],
    pub(super) tag: &'f Tag,
}

impl<'f> Proof<'f> {
    pub(super) fn parse(frame: &'f Frame) -> Option<Self> {
        let (nonce, rest) = frame.whole()?.split_first_chunk::<NONCE_LEN>()?;
        let (&len, rest) = rest.split_first()?;
        let (key_id, tag) = rest.split_at_checked(len.into())?;
        let tag = tag.try_into().ok()?;
        (!key_id.is_empty()).then_some(Self { nonce, key_id, tag })
    }
}

/// The server's nonce out of its challenge.
pub(super) fn parse_challenge(frame: &Frame) -> Option<Nonce> {
    match frame.whole()?.split_first()? {
        (&VERSION, nonce) => nonce.try_into().ok(),
        _ => None,
    }
}

/// A server's verdict.
pub(super) enum Verdict {
    Accepted(Tag),
    Refused,
}

impl Verdict {
    pub(super) fn parse(frame: &Frame) -> Option<Self> {
        match frame.whole()?.split_first()? {
            (&ACCEPTED, tag) => Some(Self::Accepted(tag.try_into().ok()?)),
            (&REFUSED, []) => Some(Self::Refused),
            _ => None,
        }
    }
}
