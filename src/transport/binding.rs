use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// What names the channel underneath a stream, the same on both of its ends and different for any other channel.
///
/// A mechanism that takes it into what it signs, as `mutual` does, can't be relayed: a man in the middle of two TLS
/// sessions has two channels, and each side signs its own.
///
/// It is no secret to its two ends, and of no use to others; `Debug` shows its kind alone. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelBinding {
    kind: &'static str,
    data: Arc<[u8]>,
}

/// A channel binding that is none: of no bytes, or of more than 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelBindingError;

impl ChannelBinding {
    const MAX_LEN: usize = u16::MAX as usize;

    /// The kind of RFC 9266: keying material that TLS exports.
    pub const TLS_EXPORTER: &'static str = "tls-exporter";

    /// A binding of this kind (as registered with IANA, [`TLS_EXPORTER`](Self::TLS_EXPORTER) say), with these bytes.
    ///
    /// # Errors
    ///
    /// [`ChannelBindingError`] if the kind or the data are empty: that is no binding, and must not pass for one. Nor
    /// may they have more than 65,535 bytes.
    pub fn new(kind: &'static str, data: impl AsRef<[u8]>) -> Result<Self, ChannelBindingError> {
        let data = data.as_ref();
        if [kind.len(), data.len()].iter().any(|len| !(1..=Self::MAX_LEN).contains(len)) {
            return Err(ChannelBindingError);
        }
        Ok(Self { kind, data: data.into() })
    }

    /// What kind of binding it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The bytes that name the channel. Never empty.
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
        f.write_str("a channel binding has a kind and data, of 1 to 65,535 bytes each")
    }
}

impl Error for ChannelBindingError {}
