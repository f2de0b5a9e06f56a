use std::io;
use std::time::Duration;

use super::callback::ErrorCallback;
use super::permits::Permits;
use super::shutdown::{BoxFuture, GracePeriod};
use crate::transport::SocketOptions;

/// How long sessions may continue after the shutdown signal, by default.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of an accept loop, for `serve` and for `Incoming`.
pub(crate) struct Settings<A> {
    pub(crate) max_connections: Option<usize>,
    pub(crate) graceful_shutdown: Option<BoxFuture<()>>,
    pub(crate) forced_shutdown: Option<BoxFuture<()>>,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) socket_options: SocketOptions,
    pub(crate) on_error: ErrorCallback<A>,
}

impl<A> Settings<A> {
    pub(super) fn permits(&self) -> io::Result<Permits> {
        if self.max_connections == Some(0) {
            let error = "max_connections is 0: no connection could ever be accepted";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        Ok(Permits::new(self.max_connections))
    }

    /// Starts the grace period.
    pub(super) fn grace_period(&mut self) -> GracePeriod {
        GracePeriod::new(self.forced_shutdown.take(), self.shutdown_timeout)
    }
}

impl<A> Default for Settings<A> {
    fn default() -> Self {
        Self {
            max_connections: None,
            graceful_shutdown: None,
            forced_shutdown: None,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
            socket_options: SocketOptions::new(),
            on_error: ErrorCallback::log(),
        }
    }
}
