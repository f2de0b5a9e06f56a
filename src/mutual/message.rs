use std::fmt;

use super::codec::Frame;
use super::encode::{NONCE_LEN, Nonce, Tag};
use crate::key::KeyId;

/// The first byte of a challenge.
pub(super) const VERSION: u8 = 1;
/// The first byte of a positive verdict.
pub(super) const ACCEPTED: u8 = 1;
/// The only byte of a negative verdict.
pub(super) const REFUSED: u8 = 0;

/// A message to send, of either side.
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

/// A client's proof, borrowed from its frame.
pub(super) struct Proof<'f> {
    pub(super) nonce: &'f Nonce,
    pub(super) key_id: &'f [u8],
    pub(super) tag: &'f Tag,
}

impl<'f> Proof<'f> {
    pub(super) fn parse(frame: &'f Frame) -> Option<Self> {
        let (nonce, rest) = frame.content()?.split_first_chunk::<NONCE_LEN>()?;
        let (&len, rest) = rest.split_first()?;
        let (key_id, tag) = rest.split_at_checked(len.into())?;
        let tag = tag.try_into().ok()?;
        (!key_id.is_empty()).then_some(Self { nonce, key_id, tag })
    }
}

/// Parses a challenge and returns the server's nonce.
pub(super) fn parse_challenge(frame: &Frame) -> Option<Nonce> {
    match frame.content()?.split_first()? {
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
        match frame.content()?.split_first()? {
            (&ACCEPTED, tag) => Some(Self::Accepted(tag.try_into().ok()?)),
            (&REFUSED, []) => Some(Self::Refused),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::TAG_LEN;
    use super::*;

    fn parse_proof(id: &[u8], tag_len: usize) -> Option<Vec<u8>> {
        let id_len = u8::try_from(id.len()).unwrap();
        let frame = [&[7; NONCE_LEN][..], &[id_len], id, &vec![8; tag_len]].concat();
        Some(Proof::parse(&Frame::new(&frame))?.key_id.to_vec())
    }

    #[test]
    fn key_id_of_a_proof_is_not_empty() {
        assert_eq!(parse_proof(b"", TAG_LEN), None);
        assert_eq!(parse_proof(b"i", TAG_LEN).unwrap(), b"i");
        assert_eq!(parse_proof(&[b'i'; 255], TAG_LEN).unwrap(), [b'i'; 255]);
    }

    #[test]
    fn tag_of_a_proof_is_not_shorter_or_longer() {
        assert_eq!(parse_proof(b"i", TAG_LEN - 1), None);
        assert_eq!(parse_proof(b"i", TAG_LEN + 1), None);
    }

    #[test]
    fn verdict_has_nothing_after_its_end() {
        let parse = |frame: &[u8]| Verdict::parse(&Frame::new(frame));
        let accepted = [&[ACCEPTED][..], &[7; TAG_LEN]].concat();
        assert!(matches!(parse(&[REFUSED]), Some(Verdict::Refused)));
        assert!(matches!(parse(&accepted), Some(Verdict::Accepted(tag)) if tag == [7; TAG_LEN]));
        for malformed in [
            &b""[..],
            &[REFUSED, 0],
            &[2],
            &[ACCEPTED],
            &accepted[..TAG_LEN],
            &[&accepted[..], &[0]].concat(),
        ] {
            assert!(parse(malformed).is_none(), "{malformed:?}");
        }
    }
}
