use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::error::debug_as_display;

/// A name for the channel that carries a stream. It is the same at both ends, and different for any other channel.
///
/// A mechanism whose proofs cover the channel binding, such as `mutual`, cannot be relayed: a man in the middle of
/// two TLS connections has two channels, and each side's proof covers its own.
///
/// `Debug` prints the kind only. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelBinding {
    kind: &'static str,
    data: Arc<[u8]>,
}

/// The error of [`ChannelBinding::new`]: the kind or the data has 0 or more than 65,535 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelBindingError;

debug_as_display!(ChannelBindingError);

impl ChannelBinding {
    const MAX_LEN: usize = u16::MAX as usize;

    /// The kind that RFC 9266 defines: keying material that TLS exports.
    pub const TLS_EXPORTER: &'static str = "tls-exporter";

    /// Creates a channel binding of this kind, as registered with IANA, e.g. [`TLS_EXPORTER`](Self::TLS_EXPORTER).
    ///
    /// # Errors
    ///
    /// Returns a [`ChannelBindingError`] if the kind or the data is empty, since it would then bind to nothing, or
    /// has more than 65,535 bytes.
    pub fn new(kind: &'static str, data: impl AsRef<[u8]>) -> Result<Self, ChannelBindingError> {
        let data = data.as_ref();
        if [kind.len(), data.len()].iter().any(|len| !(1..=Self::MAX_LEN).contains(len)) {
            return Err(ChannelBindingError);
        }
        Ok(Self { kind, data: data.into() })
    }

    /// Returns the kind of channel binding.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Returns the bytes that name the channel. They are never empty.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

impl fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelBinding").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Display for ChannelBindingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kind and the data of a channel binding must have 1 to 65,535 bytes each")
    }
}

impl Error for ChannelBindingError {}
