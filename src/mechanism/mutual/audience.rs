use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The name of the service that the client means to reach, which the server must go by: 1 to 255 bytes.
///
/// Roles and nonces do not stop the Selfie attack (RFC 9257, section 4.1), in which a host that is client and server
/// under one key is led back to itself; the audience does, if it differs between hosts or services. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Audience(Option<Arc<[u8]>>);

impl Audience {
    /// The longest, in bytes.
    pub const MAX_LEN: usize = 255;

    /// An audience of this name.
    ///
    /// # Errors
    ///
    /// [`AudienceError`] unless it has 1 to 255 bytes.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, AudienceError> {
        let name = name.as_ref();
        match name.len() {
            1..=Self::MAX_LEN => Ok(Self(Some(name.into()))),
            len => Err(AudienceError(len)),
        }
    }

    /// None: for keys that are used by one client and one server, each never in the other's role.
    #[must_use]
    pub const fn unspecified() -> Self {
        Self(None)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "Audience(\"{}\")", name.escape_ascii()),
            None => f.write_str("Audience::unspecified()"),
        }
    }
}

/// An audience of no or more than 255 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudienceError(usize);

impl fmt::Display for AudienceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an audience has 1 to 255 bytes, this one {}", self.0)
    }
}

impl Error for AudienceError {}
