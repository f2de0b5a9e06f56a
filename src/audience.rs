use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::error::debug_as_display;
use crate::key::KeyError;

/// The name of the server that the client means to reach, and that the server has: 1 to 255 bytes.
///
/// It prevents the Selfie attack (RFC 9257, section 4.1), in which a host that is client and server under one key is
/// connected to itself. Roles and nonces do not prevent that.
///
/// # One audience a host, if hosts dial each other
///
/// If the hosts of a service only accept connections, the name of the service is enough. If replicas dial each other
/// under one key, **give each host an audience of its own**, such as `orders/host-7`. With one audience for all of
/// them, an attacker who routes the packets can connect a host to itself, or to another replica than the one that it
/// dials, and both sides accept. The client's `serving_as` turns such a configuration into an
/// error.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Audience(Option<Arc<[u8]>>);

impl Audience {
    /// The length of the longest audience, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Creates an audience with this name: one for each host, if the hosts of a service dial each other.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::AudienceLength`] if the name does not have 1 to 255 bytes.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let name = name.as_ref();
        match name.len() {
            1..=Self::MAX_LEN => Ok(Self(Some(name.into()))),
            len => Err(KeyError::AudienceLength(len)),
        }
    }

    /// Creates an audience without a name. It is safe for a key that one client and one server share, if neither ever
    /// takes the other's role.
    #[must_use]
    pub const fn unspecified() -> Self {
        Self(None)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// The error of the client's `serving_as`: the client would dial the audience of its own host.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnAudience {
    /// The audience of both.
    pub audience: Audience,
}

impl OwnAudience {
    /// Fails if a host with the audience `own` dials it.
    pub(crate) fn check(dialed: &Audience, own: &Audience) -> Result<(), Self> {
        if dialed == own { Err(Self { audience: own.clone() }) } else { Ok(()) }
    }
}

debug_as_display!(OwnAudience);

impl fmt::Display for OwnAudience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client would dial the audience of its own host, ")?;
        match &self.audience.0 {
            Some(name) => write!(f, "\"{}\"", name.escape_ascii())?,
            None => f.write_str("which is unspecified")?,
        }
        f.write_str("; give each host an audience of its own, and do not dial this one")
    }
}

impl Error for OwnAudience {}

impl TryFrom<&str> for Audience {
    type Error = KeyError;

    fn try_from(name: &str) -> Result<Self, KeyError> {
        Self::new(name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_has_1_to_255_bytes() {
        assert_eq!(Audience::new("").unwrap_err(), KeyError::AudienceLength(0));
        assert_eq!(Audience::try_from("").unwrap_err(), KeyError::AudienceLength(0));
        assert_eq!(Audience::new([b'a'; 256]).unwrap_err(), KeyError::AudienceLength(256));
        for len in [1, 255] {
            let audience = Audience::new(vec![b'a'; len]).unwrap();
            assert_eq!(audience.as_bytes().len(), len);
            assert_ne!(audience, Audience::unspecified());
        }
    }
}
