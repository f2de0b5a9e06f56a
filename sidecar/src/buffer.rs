//! Buffers for data in flight. Each thread keeps one and lends it for a single poll, so that an idle session holds none.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::ReadBuf;

/// How much is read at a time, in bytes: some records of 16 KiB, or what a socket buffer holds by default.
const LEN: usize = 128 * 1024;

/// How much is read at a time while many sessions wait for slow peers.
const SMALL_LEN: usize = 16 * 1024;

/// How many large buffers are lent at a time: 32 MiB.
const MAX_LENT: usize = 256;

static LENT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A buffer that is returned to its thread when it is dropped.
pub(crate) struct Buffer {
    // Taken when it is dropped.
    bytes: Option<Box<[u8]>>,
    filled: Range<usize>,
}

impl Buffer {
    pub(crate) fn take() -> Self {
        let bytes = if LENT.fetch_add(1, Ordering::Relaxed) < MAX_LENT {
            let spare = SPARE.try_with(Cell::take).ok().flatten();
            spare.unwrap_or_else(|| vec![0; LEN].into_boxed_slice())
        } else {
            LENT.fetch_sub(1, Ordering::Relaxed);
            vec![0; SMALL_LEN].into_boxed_slice()
        };
        Self { bytes: Some(bytes), filled: 0..0 }
    }

    /// Returns the part after what was filled.
    pub(crate) fn unfilled(&mut self) -> ReadBuf<'_> {
        let end = self.filled.end;
        ReadBuf::new(&mut self.bytes.as_mut().expect("taken when dropped")[end..])
    }

    /// Counts the first bytes of [`unfilled`](Self::unfilled) as filled.
    pub(crate) fn fill(&mut self, len: usize) {
        self.filled.end += len;
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes.as_ref().expect("taken when dropped")[self.filled.clone()]
    }

    /// Returns how much was filled, also if some of it was taken already.
    pub(crate) const fn len(&self) -> usize {
        self.filled.end
    }

    /// Returns how much more can be filled.
    pub(crate) fn room(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len()) - self.filled.end
    }

    pub(crate) fn advance(&mut self, len: usize) {
        self.filled.start += len;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = self.bytes.take();
        if bytes.as_ref().is_some_and(|bytes| bytes.len() == LEN) {
            LENT.fetch_sub(1, Ordering::Relaxed);
            // A thread that ends has no use for it.
            let _ = SPARE.try_with(|spare| spare.set(bytes));
        }
    }
}
