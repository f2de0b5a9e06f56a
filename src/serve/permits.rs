use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::observe::Held;

/// No limit: more than a machine can have sockets, and the most permits that a semaphore can have on any target.
const UNLIMITED: u32 = u32::MAX >> 3;

/// The permits of an accept loop: each connection holds one until its stream is dropped, wherever the stream is by then.
pub(super) struct Permits {
    free: PollSemaphore,
    max: u32,
    // Acquired before the connection is accepted.
    reserved: Option<OwnedSemaphorePermit>,
}

/// The permit of a connection.
#[derive(Debug)]
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
    _open: Held,
}

impl Permits {
    pub(super) fn new(max: Option<usize>) -> Self {
        let max = max.and_then(|max| max.try_into().ok()).map_or(UNLIMITED, |max: u32| max.min(UNLIMITED));
        let free = Semaphore::new(max.try_into().expect("tokio supports no 16-bit targets"));
        Self { free: PollSemaphore::new(Arc::new(free)), max, reserved: None }
    }

    /// Reserves a permit for [`take`](Self::take).
    pub(super) fn poll_reserve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reserved.is_none() {
            self.reserved = ready!(self.free.poll_acquire(cx));
        }
        Poll::Ready(())
    }

    /// Takes the reserved permit.
    pub(super) fn take(&mut self) -> Option<Permit> {
        self.reserved.take().map(|permit| Permit { _permit: permit, _open: Held::connection() })
    }

    /// Hands out no further permits.
    pub(super) fn close(self) -> Drain {
        Drain { free: self.free.clone_inner(), max: self.max }
    }
}

/// The connections that are still open while the server drains.
pub(super) struct Drain {
    free: Arc<Semaphore>,
    max: u32,
}

impl Drain {
    /// Returns how many there are. Not while [`completed`](Self::completed) is pending, which collects the permits.
    pub(super) fn len(&self) -> usize {
        (self.max as usize).saturating_sub(self.free.available_permits())
    }

    /// Waits until all are closed.
    pub(super) async fn completed(&self) {
        // The semaphore is never closed, so this cannot fail.
        let _ = self.free.acquire_many(self.max).await;
    }
}
