use std::error::Error;
use std::fmt;

use crate::error::{BoxError, HandshakeError, debug_as_display};

/// The error of [`Answer`](super::Answer): why no authenticated connection was made.
///
/// `Display` prints the inner error, and [`source`](Error::source) continues below it. If other layers have wrapped
/// this error, [`HandshakeError::find_in`] finds the handshake's error in there.
#[non_exhaustive]
pub enum ConnectError {
    /// The inner connector failed, in its `poll_ready` or in its response.
    Connect(BoxError),
    /// The connection was made, and the handshake failed; or there was no key for the target.
    Handshake(HandshakeError),
}

impl ConnectError {
    pub(crate) fn connect(error: impl Into<BoxError>) -> Self {
        Self::Connect(error.into())
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Handshake(error) => error.fmt(f),
        }
    }
}

debug_as_display!(ConnectError);

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(error) => error.source(),
            Self::Handshake(error) => error.source(),
        }
    }
}
