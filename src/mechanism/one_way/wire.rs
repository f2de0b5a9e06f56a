use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::Nonce;

/// The settings that both sides of this wire must share: the nonce's length and the two verdicts.
///
/// The default is the classic wire: 32 bytes, 验证成功 and 验证失败.
///
/// ```
/// use tower_challenge::one_way::{Wire, WireError};
///
/// let wire = Wire::new(20, "ok\n", "no\n")?;
/// assert_eq!(wire.nonce_len(), 20);
/// assert_eq!(Wire::new(8, "ok\n", "no\n"), Err(WireError::NonceLen(8)));
/// # Ok::<(), WireError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    nonce_len: u8,
    verdicts: Verdicts,
}

/// The length of the longest message that this wire can be set to have, in bytes.
pub(super) const LONGEST_MESSAGE: usize = 64;
const _: () = assert!(Wire::MAX_NONCE_LEN <= LONGEST_MESSAGE && Wire::MAX_VERDICT_LEN <= LONGEST_MESSAGE);

/// Accepted, refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdicts {
    Classic,
    Own(Arc<[u8]>, Arc<[u8]>),
}

impl Wire {
    /// The shortest nonce, in bytes: below, two connections might be given the same by chance.
    pub const MIN_NONCE_LEN: usize = 16;
    /// The longest nonce, in bytes.
    pub const MAX_NONCE_LEN: usize = Nonce::MAX_LEN;
    /// The longest verdict, in bytes.
    pub const MAX_VERDICT_LEN: usize = 64;

    /// The tutorial's wire, which [`default`](Self::default) is too.
    pub const CLASSIC: Self = Self { nonce_len: 32, verdicts: Verdicts::Classic };

    /// A wire with these settings.
    ///
    /// # Errors
    ///
    /// A [`WireError`] for a nonce of less than 16 or more than 64 bytes, and for verdicts that a client could not tell
    /// apart by reading a fixed number of bytes: empty, of different lengths, or the same; or of more than 64 bytes.
    pub fn new(
        nonce_len: usize,
        accepted: impl AsRef<[u8]>,
        refused: impl AsRef<[u8]>,
    ) -> Result<Self, WireError> {
        let (accepted, refused) = (accepted.as_ref(), refused.as_ref());
        let nonce_len = u8::try_from(nonce_len)
            .ok()
            .filter(|&len| (Self::MIN_NONCE_LEN..=Self::MAX_NONCE_LEN).contains(&usize::from(len)))
            .ok_or(WireError::NonceLen(nonce_len))?;
        if accepted.len() != refused.len() {
            return Err(WireError::VerdictLensDiffer);
        }
        if !(1..=Self::MAX_VERDICT_LEN).contains(&accepted.len()) {
            return Err(WireError::VerdictLen(accepted.len()));
        }
        if accepted == refused {
            return Err(WireError::SameVerdicts);
        }
        Ok(Self { nonce_len, verdicts: Verdicts::Own(accepted.into(), refused.into()) })
    }

    /// How many random bytes the server sends.
    #[must_use]
    pub fn nonce_len(&self) -> usize {
        usize::from(self.nonce_len)
    }

    pub(super) fn zeroed_nonce(&self) -> Nonce {
        Nonce::zeroed(self.nonce_len)
    }

    /// The bytes that say yes.
    #[must_use]
    pub fn accepted(&self) -> &[u8] {
        match &self.verdicts {
            Verdicts::Classic => "验证成功".as_bytes(),
            Verdicts::Own(accepted, _) => accepted,
        }
    }

    /// The bytes that say no. As many as those that say yes.
    #[must_use]
    pub fn refused(&self) -> &[u8] {
        match &self.verdicts {
            Verdicts::Classic => "验证失败".as_bytes(),
            Verdicts::Own(_, refused) => refused,
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::CLASSIC
    }
}

/// Settings that make no [`Wire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// A nonce has 16 to 64 bytes, not this many.
    NonceLen(usize),
    /// A verdict has 1 to 64 bytes, not this many.
    VerdictLen(usize),
    /// The verdicts have different lengths.
    VerdictLensDiffer,
    /// The verdicts are the same.
    SameVerdicts,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonceLen(len) => write!(f, "a nonce has 16 to 64 bytes, not {len}"),
            Self::VerdictLen(len) => write!(f, "a verdict has 1 to 64 bytes, not {len}"),
            Self::VerdictLensDiffer => f.write_str("the verdicts have different lengths"),
            Self::SameVerdicts => f.write_str("the verdicts are the same"),
        }
    }
}

impl Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_wire() {
        let wire = Wire::default();
        assert_eq!(wire.nonce_len(), 32);
        assert_eq!((wire.accepted().len(), wire.refused().len()), (12, 12));
    }

    #[test]
    fn bad_settings_are_refused() {
        for (wire, error) in [
            (Wire::new(15, "y", "n"), WireError::NonceLen(15)),
            (Wire::new(65, "y", "n"), WireError::NonceLen(65)),
            (Wire::new(32 + 256, "y", "n"), WireError::NonceLen(288)),
            (Wire::new(32, "", ""), WireError::VerdictLen(0)),
            (Wire::new(32, [1; 65], [2; 65]), WireError::VerdictLen(65)),
            (Wire::new(32, "yes", "no"), WireError::VerdictLensDiffer),
            (Wire::new(32, "y", "y"), WireError::SameVerdicts),
        ] {
            assert_eq!(wire.unwrap_err(), error);
        }
        Wire::new(16, "y", "n").unwrap();
        Wire::new(64, [1; 64], [2; 64]).unwrap();
    }
}
