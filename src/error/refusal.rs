use std::fmt;

/// Why a server rejected a proof.
///
/// For the server's own log and metrics only. The peer sees the same bytes, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// No key has the id that the peer claimed.
    UnknownKeyId,
    /// The proof does not match the key of the claimed id: the peer has another key, means another audience, or is
    /// bound to another channel.
    ProofMismatch,
    /// The answer matches none of the keys, for mechanisms that send no key id.
    NoMatchingKey,
    /// The client chose a suite that the server does not allow, or does not know.
    SuiteNotAllowed,
    /// The client did not complete the handshake: its first message may be a replay.
    NoFinish,
    /// The proof is not well-formed.
    MalformedProof,
    /// The answer is the bare HMAC-MD5 of Python up to 3.11, which is not allowed; see `allow_legacy_md5` of the
    /// mechanism `multiprocessing`.
    LegacyMd5,
    /// The answer is the bare HMAC-SHA-256 of the Python of RHEL and its rebuilds, which is not allowed; see
    /// `allow_legacy_sha256` of the mechanism `multiprocessing`.
    LegacySha256,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKeyId => "unknown key id",
            Self::ProofMismatch => "the proof does not match: wrong key, audience or channel binding",
            Self::NoMatchingKey => "the answer matches none of the keys",
            Self::SuiteNotAllowed => "the client chose a suite that is not allowed",
            Self::NoFinish => "the client did not complete the handshake; its first message may be a replay",
            Self::MalformedProof => "the proof is malformed; does the peer use another mechanism?",
            Self::LegacyMd5 => {
                "the answer is the HMAC-MD5 of Python 3.11 or older, which is not allowed (allow_legacy_md5)"
            }
            Self::LegacySha256 => {
                "the answer is the HMAC-SHA-256 of the Python of RHEL and its rebuilds, which is not allowed \
                 (allow_legacy_sha256)"
            }
        })
    }
}
