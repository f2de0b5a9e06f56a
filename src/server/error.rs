use std::error::Error;
use std::fmt;

use crate::error::HandshakeError;

/// How a connection ended without a response of the inner service.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptError<E> {
    /// The peer did not prove itself. The inner service never heard of it.
    Handshake(HandshakeError),
    /// The peer did, but the inner service was not ready in time, see
    /// [`ready_timeout`](super::ChallengeLayer::ready_timeout), or not before the server shut down. The connection was
    /// closed.
    NotReady,
    /// The inner service failed, in its `poll_ready` or in its response.
    Service(E),
}

impl<E> fmt::Display for AcceptError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => error.fmt(f),
            Self::NotReady => f.write_str("the service was not ready in time for an authenticated peer"),
            Self::Service(_) => f.write_str("the service of an authenticated peer failed"),
        }
    }
}

impl<E: Error + 'static> Error for AcceptError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // Shown as itself, so its source comes next.
            Self::Handshake(error) => error.source(),
            Self::NotReady => None,
            Self::Service(error) => Some(error),
        }
    }
}
