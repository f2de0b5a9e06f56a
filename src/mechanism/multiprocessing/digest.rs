/// A digest that a challenge may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Digest {
    /// SHA-256: what our challenges name.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA3-256.
    Sha3_256,
    /// SHA3-384.
    Sha3_384,
    /// MD5, of which only a name is left.
    Md5,
}

impl Digest {
    pub(super) const ALL: [Self; 5] = [Self::Sha256, Self::Sha384, Self::Sha3_256, Self::Sha3_384, Self::Md5];

    /// As it stands in front of a challenge and of an answer.
    pub(super) const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"{sha256}",
            Self::Sha384 => b"{sha384}",
            Self::Sha3_256 => b"{sha3_256}",
            Self::Sha3_384 => b"{sha3_384}",
            Self::Md5 => b"{md5}",
        }
    }

    /// The digest that a challenge or an answer names, and what stands behind the name.
    pub(super) fn split(message: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL.into_iter().find_map(|digest| Some((digest, message.strip_prefix(digest.prefix())?)))
    }
}

/// Which digests a side answers with.
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

/// All but MD5.
impl Default for Digests {
    fn default() -> Self {
        Digest::ALL.into_iter().filter(|&digest| digest != Digest::Md5).collect()
    }
}
