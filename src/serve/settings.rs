use std::time::Duration;

use super::place::Places;
use super::shutdown::{BoxFuture, Patience};

/// How long sessions may go on after the signal, unless told otherwise.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// What can be set of an accept loop, whichever way its connections go.
pub(crate) struct Settings {
    pub(crate) max_connections: Option<usize>,
    pub(crate) graceful_shutdown: Option<BoxFuture<()>>,
    pub(crate) forced_shutdown: Option<BoxFuture<()>>,
    pub(crate) shutdown_timeout: Duration,
}

impl Settings {
    pub(crate) fn set_max_connections(&mut self, max: usize) {
        assert!(max > 0, "at least one connection");
        self.max_connections = Some(max);
    }

    pub(super) fn places(&self) -> Places {
        Places::new(self.max_connections)
    }

    /// For how long to wait, now that the end has begun.
    pub(super) fn patience(self) -> Patience {
        Patience::new(self.forced_shutdown, self.shutdown_timeout)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: None,
            graceful_shutdown: None,
            forced_shutdown: None,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
        }
    }
}
