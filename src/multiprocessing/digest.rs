/// A digest that a challenge can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Digest {
    /// SHA-256, which the challenges of this crate name.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA3-256.
    Sha3_256,
    /// SHA3-384.
    Sha3_384,
    /// MD5. Not allowed by default.
    Md5,
}

impl Digest {
    pub(super) const ALL: [Self; 5] = [Self::Sha256, Self::Sha384, Self::Sha3_256, Self::Sha3_384, Self::Md5];

    /// Returns the name as it precedes a challenge and an answer.
    pub(super) const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"{sha256}",
            Self::Sha384 => b"{sha384}",
            Self::Sha3_256 => b"{sha3_256}",
            Self::Sha3_384 => b"{sha3_384}",
            Self::Md5 => b"{md5}",
        }
    }

    /// Splits a challenge or an answer into the digest that it names and the rest.
    pub(super) fn split(message: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL.into_iter().find_map(|digest| Some((digest, message.strip_prefix(digest.prefix())?)))
    }
}

/// The dialect of a Python that names no digest: a challenge of 20 random bytes, and answers that are a bare tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Legacy {
    /// HMAC-MD5: CPython up to 3.11.
    Md5,
    /// HMAC-SHA-256: CPython up to 3.11 as patched by RHEL and its rebuilds.
    Sha256,
}

impl Legacy {
    pub(super) const fn digest(self) -> Digest {
        match self {
            Self::Md5 => Digest::Md5,
            Self::Sha256 => Digest::Sha256,
        }
    }
}

/// The dialects of older Pythons that a side allows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AllowedLegacy {
    pub(super) md5: bool,
    pub(super) sha256: bool,
}

impl AllowedLegacy {
    /// Returns the dialect for an answer to a challenge of 20 bytes, which does not tell the dialects apart. If both
    /// are allowed, it is the one with the stronger digest.
    pub(super) fn for_answer(self) -> Option<Legacy> {
        if self.sha256 {
            Some(Legacy::Sha256)
        } else if self.md5 {
            Some(Legacy::Md5)
        } else {
            None
        }
    }
}

/// The digests with which a side answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digests([bool; Digest::ALL.len()]);

impl Digests {
    pub(super) fn contains(self, digest: Digest) -> bool {
        self.0[digest as usize]
    }
}

impl FromIterator<Digest> for Digests {
    fn from_iter<I: IntoIterator<Item = Digest>>(digests: I) -> Self {
        let mut set = [false; Digest::ALL.len()];
        digests.into_iter().for_each(|digest| set[digest as usize] = true);
        Self(set)
    }
}

/// Returns all digests except MD5.
impl Default for Digests {
    fn default() -> Self {
        Digest::ALL.into_iter().filter(|&digest| digest != Digest::Md5).collect()
    }
}
