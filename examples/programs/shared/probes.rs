//! Connections that end before the peer has sent anything, as by health checks and port scans.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tower_challenge::serve::ServeError;
use tower_challenge::{AcceptError, HandshakeErrorKind};

use super::output::out;

/// The shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Counts probes, and prints at most one line per minute about them. A health check may come every second.
#[derive(Default)]
pub(crate) struct Probes {
    count: usize,
    printed: Option<Instant>,
}

impl Probes {
    /// Counts a probe. Returns `false` if the error is none.
    pub(crate) fn count(&mut self, error: &ServeError<SocketAddr>) -> bool {
        // The handshake of a client has this kind of error, too. There it matters.
        let ServeError::Connection { addr, error } = error else { return false };
        let Some(AcceptError::Handshake(error)) = error.downcast_ref() else { return false };
        if error.kind() != HandshakeErrorKind::Probe {
            return false;
        }
        self.count += 1;
        if self.printed.is_none_or(|printed| printed.elapsed() >= PERIOD) {
            self.print(format_args!(", the last one from {}", addr.ip()));
        }
        true
    }

    fn print(&mut self, more: impl std::fmt::Display) {
        out(format_args!("closed before the peer sent anything: {} connections{more}", self.count));
        (self.count, self.printed) = (0, Some(Instant::now()));
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if self.count > 0 {
            self.print("");
        }
    }
}
