use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::observe::Held;

/// More than there can be sockets, and as many as a semaphore can have on any machine.
const UNLIMITED: u32 = u32::MAX >> 3;

/// How many connections there may be, and how many there are: a connection is there as long as its stream is, wherever
/// that has been handed on to.
pub(super) struct Places {
    free: PollSemaphore,
    max: u32,
    // Taken before there is anybody to take it.
    reserved: Option<OwnedSemaphorePermit>,
}

/// What a connection holds as long as it is there.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _open: Held,
}

impl Places {
    pub(super) fn new(max: Option<usize>) -> Self {
        let max = max.and_then(|max| max.try_into().ok()).map_or(UNLIMITED, |max: u32| max.min(UNLIMITED));
        let free = Semaphore::new(max.try_into().expect("no pointer has less than 32 bits where tokio runs"));
        Self { free: PollSemaphore::new(Arc::new(free)), max, reserved: None }
    }

    /// Reserves a place, for [`take`](Self::take).
    pub(super) fn poll_reserve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reserved.is_none() {
            self.reserved = ready!(self.free.poll_acquire(cx));
        }
        Poll::Ready(())
    }

    /// The place that has been reserved.
    pub(super) fn take(&mut self) -> Option<Place> {
        self.reserved.take().map(|permit| Place { _permit: permit, _open: Held::connection() })
    }

    /// Lets nobody else in.
    pub(super) fn close(self) -> Leaving {
        Leaving { free: self.free.clone_inner(), max: self.max }
    }
}

/// Those who are still there when nobody else comes in.
pub(super) struct Leaving {
    free: Arc<Semaphore>,
    max: u32,
}

impl Leaving {
    /// How many they are. Not while somebody waits for them, who takes what is given back.
    pub(super) fn len(&self) -> usize {
        (self.max as usize).saturating_sub(self.free.available_permits())
    }

    /// Waits until all have gone.
    pub(super) async fn gone(&self) {
        // Never closed, so this can't fail.
        let _ = self.free.acquire_many(self.max).await;
    }
}
