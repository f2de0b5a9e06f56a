//! The log: one line per event on the standard output.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use tower_challenge::key::ReloadError;
use tower_challenge::serve::{ServeError, Shutdown};
use tower_challenge::{AcceptError, KeyId};

use super::shared::key_file::explain_reload;
use super::shared::output::out;

pub(crate) enum Event {
    Listening(SocketAddr),
    /// The number of keys after the file was read, or why they are unchanged.
    Keys(Result<usize, ReloadError>),
    /// A session has begun; on the server, with the id of the peer's key.
    Opened(SocketAddr, Option<KeyId>),
    /// Both ends of a session have closed. Bytes from the side that connected, and bytes to it.
    Closed(SocketAddr, (u64, u64)),
    Failed(ServeError<SocketAddr>),
    /// The first signal has arrived.
    Stopping,
    Stopped(Shutdown),
}

/// Why a session of an authenticated peer did not begin, or broke.
#[derive(Debug)]
pub(crate) enum SessionError {
    /// The target at this address could not be reached.
    Unreachable(String, io::Error),
    /// Reading from one of the two ends or writing to it failed.
    Broken(io::Error),
}

impl Event {
    pub(crate) fn log(&self) {
        out(self);
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening(addr) => write!(f, "listening on {addr}"),
            Self::Keys(Ok(count)) => write!(f, "keys: {count}"),
            Self::Keys(Err(error)) => write!(f, "keys: {}; the keys are unchanged", explain_reload(error)),
            Self::Opened(addr, None) => write!(f, "{addr} opened"),
            Self::Opened(addr, Some(key_id)) => write!(f, "{addr} opened: key {key_id}"),
            Self::Closed(addr, (sent, received)) => write!(f, "{addr} closed: {sent} bytes, {received} back"),
            Self::Failed(ServeError::Connection { addr, error }) => match error.downcast_ref() {
                Some(AcceptError::NotReady) => write!(f, "{addr} rejected: too many sessions"),
                _ => write!(f, "{addr} {error}"),
            },
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
            Self::Unreachable(target, error) => write!(f, "failed: cannot connect to {target}: {error}"),
            Self::Broken(error) => write!(f, "failed: {error}"),
        }
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(_, error) | Self::Broken(error) => error.source(),
        }
    }
}
