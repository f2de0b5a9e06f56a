use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls foreign code. Returns `None` if it panics.
pub(super) fn contain<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).map_err(discard).ok()
}

/// Drops the payload of a panic. The destructor of a payload may panic as well, with another payload: that one is
/// leaked.
pub(super) fn discard(payload: Box<dyn Any + Send>) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(payload);
    }
}
