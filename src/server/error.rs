use std::error::Error;
use std::fmt;

use crate::error::{BoxError, HandshakeError, debug_as_display};

/// The error of [`Challenge`](super::Challenge): why a connection ended without a response of the inner service.
///
/// `Display` prints the inner error, and [`source`](Error::source) continues below it. If other layers have wrapped
/// this error, [`HandshakeError::find_in`] finds the handshake's error in there.
#[non_exhaustive]
pub enum AcceptError {
    /// The handshake failed: the peer did not prove itself, or its key was revoked in the meantime. The inner service
    /// was not called.
    Handshake(HandshakeError),
    /// The peer proved itself, but the inner service did not become ready within
    /// [`ready_timeout`](super::ChallengeLayer::ready_timeout), or not before the server shut down. The connection was
    /// closed.
    NotReady,
    /// The peer's key was revoked after the handshake. Either it waited for the inner service, which was not called, or
    /// its session was ended, see [`end_revoked_sessions`](super::ChallengeLayer::end_revoked_sessions).
    Revoked,
    /// The inner service failed, in its `poll_ready` or in its response.
    Service(BoxError),
}

impl AcceptError {
    pub(super) fn service(error: impl Into<BoxError>) -> Self {
        Self::Service(error.into())
    }
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => error.fmt(f),
            Self::NotReady => f.write_str("the service was not ready in time for an authenticated peer"),
            Self::Revoked => f.write_str("the session ended because the key of the peer was revoked"),
            Self::Service(error) => error.fmt(f),
        }
    }
}

debug_as_display!(AcceptError);

impl Error for AcceptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Handshake(error) => error.source(),
            Self::NotReady | Self::Revoked => None,
            Self::Service(error) => error.source(),
        }
    }
}
