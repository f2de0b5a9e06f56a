use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;

use crate::error::{BoxError, HandshakeError, debug_as_display};

/// An error that [`Serve::on_error`](super::Serve::on_error) receives. None of them stops the server.
#[non_exhaustive]
pub enum ServeError<A> {
    /// A connection could not be accepted.
    ///
    /// If the cause is in this process or machine, such as a lack of file descriptors, the accept loop pauses before
    /// the next attempt, from 5 to 500 ms.
    Accept(io::Error),
    /// The service failed on a connection. With a [`ChallengeLayer`](crate::ChallengeLayer) this includes peers that did
    /// not prove themselves, see [`handshake_error`](Self::handshake_error).
    Connection {
        /// The peer's address, as `accept` returned it.
        addr: A,
        /// The error of the service.
        error: BoxError,
    },
    /// The service panicked on a connection. Other connections are not affected.
    Panicked {
        /// The peer's address, as `accept` returned it.
        addr: A,
        /// The panic message, if it is a string.
        message: String,
    },
}

impl<A> ServeError<A> {
    /// Returns the error of the handshake, if that is what failed. Errors of tower layers around it are searched, as
    /// [`HandshakeError::find_in`] does, but not [`AcceptError::Service`](crate::AcceptError::Service): a session can fail
    /// because of a handshake with another peer.
    #[must_use]
    pub fn handshake_error(&self) -> Option<&HandshakeError> {
        match self {
            Self::Connection { error, .. } => HandshakeError::find_before_session(&**error),
            Self::Accept(_) | Self::Panicked { .. } => None,
        }
    }

    /// Returns the peer's address, if there is a connection.
    #[must_use]
    pub const fn addr(&self) -> Option<&A> {
        match self {
            Self::Connection { addr, .. } | Self::Panicked { addr, .. } => Some(addr),
            Self::Accept(_) => None,
        }
    }

    pub(super) fn panicked(addr: A, payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked { addr, message: message.unwrap_or_default() }
    }
}

impl<A: fmt::Debug> fmt::Display for ServeError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(error) => write!(f, "accept failed: {error}"),
            Self::Connection { addr, error } => write!(f, "connection from {addr:?}: {error}"),
            Self::Panicked { addr, message } => {
                let message = message.escape_debug();
                write!(f, "connection from {addr:?}: the service panicked: {message}")
            }
        }
    }
}

debug_as_display!(ServeError<A: fmt::Debug>);

impl<A: fmt::Debug> Error for ServeError<A> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Accept(error) => error.source(),
            Self::Connection { error, .. } => error.source(),
            Self::Panicked { .. } => None,
        }
    }
}
