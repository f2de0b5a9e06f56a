use std::error::Error;
use std::fmt;

use crate::error::HandshakeError;

/// How a connection did not come about.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError<E> {
    /// The connector within failed, in its `poll_ready` or in its response.
    Connect(E),
    /// The connection was there, but the handshake failed; or there was no key for the target.
    Handshake(HandshakeError),
}

impl<E> fmt::Display for ConnectError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(_) => f.write_str("no connection"),
            Self::Handshake(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for ConnectError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            // Shown as itself, so its source comes next.
            Self::Handshake(error) => error.source(),
        }
    }
}
