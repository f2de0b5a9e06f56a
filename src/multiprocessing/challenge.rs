//! The challenges and answers of both roles.

use super::codec::{Received, Sent};
use super::digest::{Digest, Digests, Legacy};
use super::key::{MAX_TAG_LEN, PreparedKey, Tag};
use crate::error::{HandshakeError, HandshakeErrorKind};

const CHALLENGE: &[u8] = b"#CHALLENGE#";
pub(super) const WELCOME: &[u8] = b"#WELCOME#";
pub(super) const FAILURE: &[u8] = b"#FAILURE#";

/// The number of random bytes in a challenge of this crate, and of CPython since 3.12.
pub(super) const NONCE_LEN: usize = 40;
/// The number of random bytes in a challenge of CPython up to 3.11, which names no digest.
const LEGACY_NONCE_LEN: usize = 20;
const LEGACY_NOT_ALLOWED: &str = "the challenge is that of Python 3.11 or older, which is not allowed \
    (allow_legacy_md5, or allow_legacy_sha256 for the Python of RHEL and its rebuilds)";

const NAME_LEN: usize = Digest::Sha256.prefix().len();

/// A challenge of this side.
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

    /// Returns whether `tag` is valid, in constant time. To be called in
    /// [`wiping_stack`](crate::mechanism::wiping_stack).
    pub(super) fn is_answered(&self, key: &PreparedKey, tag: &Tag<'_>) -> bool {
        key.is_valid(&self.message, tag)
    }
}

/// Parses an answer and returns its tag. An answer names the digest of the challenge; a legacy answer is a bare tag.
/// The caller must check whether its dialect is allowed.
pub(super) fn parse_answer(frame: &Received) -> Option<Tag<'_>> {
    let answer = frame.as_bytes();
    match Digest::split(answer) {
        Some((Digest::Sha256, tag)) => tag.try_into().ok().map(Tag::Sha256),
        Some(_) => None,
        None => {
            let md5 = answer.try_into().ok().map(Tag::LegacyMd5);
            md5.or_else(|| answer.try_into().ok().map(Tag::LegacySha256))
        }
    }
}

/// A challenge of the peer that this side may answer.
pub(super) struct PeerChallenge<'f> {
    message: &'f [u8],
    answer: Answer,
}

/// How a challenge is answered.
enum Answer {
    /// By the name of the digest and a tag.
    Named(Digest),
    /// By a bare tag.
    Legacy(Legacy),
}

impl<'f> PeerChallenge<'f> {
    /// Parses a challenge. `legacy` is the dialect for the answer to a legacy challenge, if one is allowed.
    ///
    /// Returns an error if this side must not answer.
    pub(super) fn parse(
        frame: &'f Received,
        digests: Digests,
        legacy: Option<Legacy>,
    ) -> Result<Self, HandshakeError> {
        let malformed = HandshakeError::malformed;
        let message =
            frame.as_bytes().strip_prefix(CHALLENGE).ok_or_else(|| malformed("expected #CHALLENGE#"))?;
        let answer = if message.len() == LEGACY_NONCE_LEN {
            Answer::Legacy(legacy.ok_or_else(|| {
                // As a cause, so that nothing about other mechanisms is added: the peer uses this one.
                HandshakeError::with_cause(HandshakeErrorKind::Malformed, LEGACY_NOT_ALLOWED)
            })?)
        } else {
            match Digest::split(message) {
                // Future versions of CPython may send another number of random bytes. Fewer than this would be
                // predictable.
                Some((_, nonce)) if nonce.len() < LEGACY_NONCE_LEN => {
                    return Err(malformed("the challenge has fewer than 20 random bytes"));
                }
                Some((digest, _)) if digests.contains(digest) => Answer::Named(digest),
                Some(_) => return Err(malformed("the challenge names a digest that is not allowed")),
                None => return Err(malformed("the challenge names no known digest")),
            }
        };
        Ok(Self { message, answer })
    }

    /// Returns the dialect of the answer, if it is a legacy one.
    pub(super) fn legacy(&self) -> Option<Legacy> {
        match self.answer {
            Answer::Named(_) => None,
            Answer::Legacy(dialect) => Some(dialect),
        }
    }

    pub(super) fn message(&self) -> &[u8] {
        self.message
    }

    pub(super) fn answer(&self, key: &PreparedKey) -> Sent {
        let (name, digest) = match self.answer {
            Answer::Named(digest) => (digest.prefix(), digest),
            Answer::Legacy(dialect) => (&b""[..], dialect.digest()),
        };
        let mut tag = [0; MAX_TAG_LEN];
        let len = key.tag(digest, self.message, &mut tag);
        Sent::of(&[name, &tag[..len]])
    }
}
