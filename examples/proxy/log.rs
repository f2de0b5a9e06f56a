//! What happens, one line each on the standard output.

use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use tower_challenge::key::ReloadError;
use tower_challenge::serve::{ServeError, Shutdown};
use tower_challenge::{AcceptError, ConnectError, HandshakeError, KeyId};

pub(crate) enum Event {
    Listening(SocketAddr),
    /// How many keys there are now, or why they are still the old ones.
    Keys(Result<usize, ReloadError>),
    /// A session has begun; at the server's, with the key that the peer holds.
    Opened(SocketAddr, Option<KeyId>),
    /// Both ends of a session have closed. Bytes from whoever connected, and bytes back.
    Closed(SocketAddr, (u64, u64)),
    Failed(ServeError<SessionError, SocketAddr>),
    /// The first signal has come.
    Stopping,
    Stopped(Shutdown),
}

/// Why there was no session, or no longer.
#[derive(Debug)]
pub(crate) enum SessionError {
    /// The peer has not proven itself, or has refused us.
    Refused(HandshakeError),
    /// The peer has, but as many sessions as may be were open.
    Busy,
    /// The target was not to be reached.
    Unreachable(io::Error),
    /// One of the two ends broke.
    Broken(io::Error),
}

impl Event {
    pub(crate) fn log(&self) {
        // Nobody may be reading any more: no reason for a session to end.
        let _ = writeln!(io::stdout(), "{self}");
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening(addr) => write!(f, "listening on {addr}"),
            Self::Keys(Ok(count)) => write!(f, "keys: {count}"),
            Self::Keys(Err(error)) => write!(f, "keys: {error}; they stay as they were"),
            Self::Opened(addr, None) => write!(f, "{addr} opened"),
            Self::Opened(addr, Some(key_id)) => write!(f, "{addr} opened: key {key_id}"),
            Self::Closed(addr, (sent, received)) => write!(f, "{addr} closed: {sent} bytes, {received} back"),
            Self::Failed(ServeError::Connection { addr, error }) => write!(f, "{addr} {error}"),
            Self::Failed(error) => error.fmt(f),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped(Shutdown { completed, failed, aborted, .. }) => {
                write!(f, "stopped: {completed} completed, {failed} failed, {aborted} aborted")
            }
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Busy => f.write_str("turned away: too many sessions"),
            Self::Unreachable(error) => write!(f, "failed: target not reached: {error}"),
            Self::Broken(error) => write!(f, "failed: {error}"),
        }
    }
}

impl From<AcceptError<Self>> for SessionError {
    fn from(error: AcceptError<Self>) -> Self {
        match error {
            AcceptError::Handshake(error) => Self::Refused(error),
            AcceptError::NotReady => Self::Busy,
            AcceptError::Service(error) => error,
            other => Self::Broken(io::Error::other(other.to_string())),
        }
    }
}

impl From<ConnectError<Self>> for SessionError {
    fn from(error: ConnectError<Self>) -> Self {
        match error {
            ConnectError::Connect(error) => error,
            ConnectError::Handshake(error) => Self::Refused(error),
            other => Self::Broken(io::Error::other(other.to_string())),
        }
    }
}
