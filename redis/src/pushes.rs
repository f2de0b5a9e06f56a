//! What Redis has pushed and the feed has not handled yet.

use std::collections::HashSet;
use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use crate::layout::{Layout, Name};

/// With more names than this, everything is read again.
const MAX_DIRTY: usize = 100_000;

#[derive(Default)]
pub(crate) struct Pushes {
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pending {
    /// The values that have changed.
    pub(crate) dirty: HashSet<Name>,
    /// Anything may have changed.
    pub(crate) reload: bool,
    /// The connection has ended.
    pub(crate) disconnected: bool,
}

impl Pushes {
    pub(crate) fn push(&self, layout: &Layout, push: &PushInfo) {
        let mut pending = self.lock();
        match push.kind {
            PushKind::Invalidate => match &push.data[..] {
                [Value::Array(names)] => {
                    for name in names {
                        if let Value::BulkString(name) = name {
                            pending.dirty.extend(layout.parse(name));
                        }
                    }
                }
                // The whole store was flushed.
                _ => pending.reload = true,
            },
            PushKind::Disconnection => pending.disconnected = true,
            _ => return,
        }
        if pending.dirty.len() > MAX_DIRTY {
            pending.dirty = HashSet::new();
            pending.reload = true;
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Waits until there is something. Cancel safe.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn take(&self) -> Pending {
        take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
