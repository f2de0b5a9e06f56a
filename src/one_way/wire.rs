use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::message::Nonce;
use crate::error::debug_as_display;

/// The settings of the wire: the length of the nonce, and the two verdicts, if there are any. Both sides must use the
/// same.
///
/// The default is the [classic wire](Self::CLASSIC).
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

/// An upper bound of the length of all messages, in bytes, for every [`Wire`].
pub(super) const MAX_MESSAGE_LEN: usize = 64;
const _: () = assert!(Wire::MAX_NONCE_LEN <= MAX_MESSAGE_LEN && Wire::MAX_VERDICT_LEN <= MAX_MESSAGE_LEN);

/// The verdicts: accepted, refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdicts {
    Classic,
    Custom(Arc<[u8]>, Arc<[u8]>),
    None,
}

impl Wire {
    /// The shortest nonce, in bytes. With a shorter one, two connections could get the same nonce by chance.
    pub const MIN_NONCE_LEN: usize = 16;
    /// The longest nonce, in bytes.
    pub const MAX_NONCE_LEN: usize = Nonce::MAX_LEN;
    /// The longest verdict, in bytes.
    pub const MAX_VERDICT_LEN: usize = 64;

    /// The classic wire, which is also the default: a nonce of 32 bytes and the verdicts `验证成功` ("authentication
    /// succeeded") and `验证失败` ("authentication failed") in UTF-8. It comes from a Python tutorial.
    pub const CLASSIC: Self = Self { nonce_len: 32, verdicts: Verdicts::Classic };

    /// Creates a wire with these settings.
    ///
    /// # Errors
    ///
    /// Returns a [`WireError`] if the nonce has less than 16 or more than 64 bytes, or if the verdicts are empty,
    /// longer than 64 bytes, equal, or of different lengths: the client reads a fixed number of bytes to tell them
    /// apart.
    pub fn new(
        nonce_len: usize,
        accepted: impl AsRef<[u8]>,
        refused: impl AsRef<[u8]>,
    ) -> Result<Self, WireError> {
        let (accepted, refused) = (accepted.as_ref(), refused.as_ref());
        let wire = Self::without_verdict(nonce_len)?;
        if accepted.len() != refused.len() {
            return Err(WireError::VerdictLensDiffer);
        }
        if !(1..=Self::MAX_VERDICT_LEN).contains(&accepted.len()) {
            return Err(WireError::VerdictLen(accepted.len()));
        }
        if accepted == refused {
            return Err(WireError::SameVerdicts);
        }
        Ok(Self { verdicts: Verdicts::Custom(accepted.into(), refused.into()), ..wire })
    }

    /// Creates a wire without verdicts: the application's data follow the answer, and a refused client is disconnected.
    /// This is the wire of the Python Cookbook, 3rd edition, recipe 11.9, with a nonce of 32 bytes.
    ///
    /// The client's handshake is complete when the answer is sent. **The client then knows nothing**, not even whether
    /// it was accepted: if it was refused, its next read finds the end of the stream, or fails.
    ///
    /// ```
    /// use tower_challenge::one_way::{self, Wire};
    /// use tower_challenge::{Key, KeyEntry};
    ///
    /// let key = Key::new("peekaboo")?;
    /// let wire = Wire::without_verdict(32)?;
    /// let client = one_way::Client::new(&key).wire(wire.clone());
    /// let ring = one_way::KeyRing::new([KeyEntry::new("alice", key)?])?;
    /// let server = one_way::Server::new(ring).wire(wire);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`WireError::NonceLen`] if the nonce has less than 16 or more than 64 bytes.
    pub fn without_verdict(nonce_len: usize) -> Result<Self, WireError> {
        let nonce_len = u8::try_from(nonce_len)
            .ok()
            .filter(|&len| (Self::MIN_NONCE_LEN..=Self::MAX_NONCE_LEN).contains(&usize::from(len)))
            .ok_or(WireError::NonceLen(nonce_len))?;
        Ok(Self { nonce_len, verdicts: Verdicts::None })
    }

    /// Returns the length of the nonce, in bytes.
    #[must_use]
    pub fn nonce_len(&self) -> usize {
        usize::from(self.nonce_len)
    }

    pub(super) fn zeroed_nonce(&self) -> Nonce {
        Nonce::zeroed(self.nonce_len)
    }

    /// Returns whether the server sends a verdict. Only a wire [without a verdict](Self::without_verdict) has none.
    #[must_use]
    pub fn has_verdict(&self) -> bool {
        self.verdicts != Verdicts::None
    }

    /// Returns the verdict for a client that is accepted. Empty if the wire has none.
    #[must_use]
    pub fn accepted(&self) -> &[u8] {
        match &self.verdicts {
            Verdicts::Classic => "验证成功".as_bytes(),
            Verdicts::Custom(accepted, _) => accepted,
            Verdicts::None => &[],
        }
    }

    /// Returns the verdict for a client that is refused. It has the same length as [`accepted`](Self::accepted).
    #[must_use]
    pub fn refused(&self) -> &[u8] {
        match &self.verdicts {
            Verdicts::Classic => "验证失败".as_bytes(),
            Verdicts::Custom(_, refused) => refused,
            Verdicts::None => &[],
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::CLASSIC
    }
}

/// The error of [`Wire::new`] and [`Wire::without_verdict`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// The nonce has this number of bytes, not 16 to 64.
    NonceLen(usize),
    /// The verdicts have this number of bytes, not 1 to 64.
    VerdictLen(usize),
    /// The verdicts have different lengths.
    VerdictLensDiffer,
    /// The verdicts are equal.
    SameVerdicts,
}

debug_as_display!(WireError);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonceLen(len) => write!(f, "the nonce must have 16 to 64 bytes, not {len}"),
            Self::VerdictLen(len) => write!(f, "the verdicts must have 1 to 64 bytes, not {len}"),
            Self::VerdictLensDiffer => f.write_str("the two verdicts must have the same length"),
            Self::SameVerdicts => f.write_str("the two verdicts must not be equal"),
        }
    }
}

impl Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_wire() {
        let wire = Wire::default();
        assert_eq!(wire.nonce_len(), 32);
        assert_eq!((wire.accepted().len(), wire.refused().len()), (12, 12));
    }

    #[test]
    fn rejects_invalid_settings() {
        for (wire, error) in [
            (Wire::new(15, "y", "n"), WireError::NonceLen(15)),
            (Wire::new(65, "y", "n"), WireError::NonceLen(65)),
            (Wire::new(32 + 256, "y", "n"), WireError::NonceLen(288)),
            (Wire::without_verdict(15), WireError::NonceLen(15)),
            (Wire::without_verdict(65), WireError::NonceLen(65)),
            (Wire::new(32, "", ""), WireError::VerdictLen(0)),
            (Wire::new(32, [1; 65], [2; 65]), WireError::VerdictLen(65)),
            (Wire::new(32, "yes", "no"), WireError::VerdictLensDiffer),
            (Wire::new(32, "y", "y"), WireError::SameVerdicts),
        ] {
            assert_eq!(wire.unwrap_err(), error);
        }
        Wire::new(16, "y", "n").unwrap();
        Wire::new(64, [1; 64], [2; 64]).unwrap();
        assert_eq!(Wire::without_verdict(16).unwrap().nonce_len(), 16);
    }
}
