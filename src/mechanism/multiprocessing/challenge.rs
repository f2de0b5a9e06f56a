//! What both roles do: challenge, and answer.

use super::codec::{Received, Sent};
use super::digest::{Digest, Digests};
use super::key::{MAX_TAG_LEN, PreparedKey, Tag};

const CHALLENGE: &[u8] = b"#CHALLENGE#";
pub(super) const WELCOME: &[u8] = b"#WELCOME#";
pub(super) const FAILURE: &[u8] = b"#FAILURE#";

/// How many bytes follow the digest's name in a challenge of ours, and of CPython's from 3.12 on.
pub(super) const NONCE_LEN: usize = 40;
/// How many bytes a challenge of CPython up to 3.11 has, without any name.
const LEGACY_LEN: usize = 20;

const NAME_LEN: usize = Digest::Sha256.prefix().len();

/// A challenge that this side has sent, and the answer to which it awaits.
pub(super) struct Challenge {
    message: [u8; NAME_LEN + NONCE_LEN],
}

impl Challenge {
    pub(super) fn new(nonce: &[u8; NONCE_LEN]) -> Self {
        let mut message = [0; NAME_LEN + NONCE_LEN];
        let (name, rest) = message.split_at_mut(NAME_LEN);
        name.copy_from_slice(Digest::Sha256.prefix());
        rest.copy_from_slice(nonce);
        Self { message }
    }

    pub(super) fn frame(&self) -> Sent {
        Sent::of(&[CHALLENGE, &self.message])
    }

    pub(super) fn verify(&self, key: &PreparedKey, tag: &Tag<'_>) -> bool {
        key.verify(&self.message, tag)
    }
}

/// The tag of an answer, if it has the form of one: with the name of the digest that the challenge has, or bare.
pub(super) fn parse_answer(frame: &Received, legacy_md5: bool) -> Option<Tag<'_>> {
    match Digest::split(frame.as_bytes()) {
        Some((Digest::Sha256, tag)) => tag.try_into().ok().map(Tag::Sha256),
        None if legacy_md5 => frame.as_bytes().try_into().ok().map(Tag::LegacyMd5),
        Some(_) | None => None,
    }
}

/// A challenge of the peer's that this side may answer.
pub(super) struct Asked<'f> {
    message: &'f [u8],
    /// None for a bare HMAC-MD5.
    digest: Option<Digest>,
}

impl<'f> Asked<'f> {
    /// Why not, where it may not be answered.
    pub(super) fn parse(
        frame: &'f Received,
        digests: Digests,
        legacy_md5: bool,
    ) -> Result<Self, &'static str> {
        let message = frame.as_bytes().strip_prefix(CHALLENGE).ok_or("no challenge")?;
        if message.len() == LEGACY_LEN {
            return if legacy_md5 {
                Ok(Self { message, digest: None })
            } else {
                Err("a challenge of Python up to 3.11, which is not allowed")
            };
        }
        match Digest::split(message) {
            // So much must be unpredictable, in whatever CPython's future challenges look like.
            Some((_, nonce)) if nonce.len() < LEGACY_LEN => Err("a challenge that is too short"),
            Some((digest, _)) if digests.contains(digest) => Ok(Self { message, digest: Some(digest) }),
            Some(_) => Err("a challenge with a digest that is not allowed"),
            None => Err("a challenge without a digest that is known"),
        }
    }

    pub(super) fn is_legacy(&self) -> bool {
        self.digest.is_none()
    }

    pub(super) fn message(&self) -> &[u8] {
        self.message
    }

    pub(super) fn answer(&self, key: &PreparedKey) -> Sent {
        let mut tag = [0; MAX_TAG_LEN];
        let len = key.tag(self.digest.unwrap_or(Digest::Md5), self.message, &mut tag);
        Sent::of(&[self.digest.map_or(b"", Digest::prefix), &tag[..len]])
    }
}
