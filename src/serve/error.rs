use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;

/// What [`Serve::on_error`](super::Serve::on_error) is told. None of it ends the server.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError<E, A> {
    /// A connection could not be accepted. Where that is the fault of this process or machine (no file descriptor left,
    /// say), the next attempt waits a little, and longer each time it fails.
    Accept(io::Error),
    /// The service failed on a connection: with a [`ChallengeLayer`](crate::ChallengeLayer), a peer that did not prove
    /// itself is among them.
    Connection {
        /// Where the connection came from.
        addr: A,
        /// What the service said.
        error: E,
    },
    /// The service panicked on a connection. The others go on.
    Panicked {
        /// Where the connection came from.
        addr: A,
        /// What it said.
        message: String,
    },
}

impl<E, A> ServeError<E, A> {
    pub(super) fn panicked(addr: A, payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked { addr, message: message.unwrap_or_default() }
    }
}

impl<E: fmt::Display, A: fmt::Debug> fmt::Display for ServeError<E, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept(error) => write!(f, "no connection accepted: {error}"),
            Self::Connection { addr, error } => write!(f, "connection from {addr:?}: {error}"),
            Self::Panicked { addr, message } => {
                write!(f, "connection from {addr:?}: the service panicked: {message}")
            }
        }
    }
}

impl<E: Error + 'static, A: fmt::Debug> Error for ServeError<E, A> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Accept(error) => error.source(),
            Self::Connection { error, .. } => error.source(),
            Self::Panicked { .. } => None,
        }
    }
}
