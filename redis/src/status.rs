//! How well a server follows its store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::state::Counts;

pub(crate) struct Status {
    /// Everything that was in the store then is known.
    seen: Mutex<Instant>,
    connected: AtomicBool,
}

impl Status {
    pub(crate) fn new() -> Self {
        Self { seen: Mutex::new(Instant::now()), connected: AtomicBool::new(false) }
    }

    pub(crate) fn seen(&self, at: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = at.max(*seen);
    }

    pub(crate) fn staleness(&self) -> Duration {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }
}

/// What a server says of itself in the store.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// In seconds since 1970.
    pub(crate) at: u64,
    pub(crate) counts: Counts,
    /// In seconds.
    pub(crate) staleness: f64,
}
