use zeroize::zeroize_stack;

/// How much of the stack is overwritten, in bytes. Without optimizations, the same computations need more of it.
const DEPTH: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 4 * 1024 };

/// Calls `f`, which computes with a secret, and then overwrites the part of the stack that it used.
///
/// The types of RustCrypto overwrite their memory when they are dropped. They do not overwrite what they compute with:
/// padded blocks, intermediate values, and the copies that moves leave.
///
/// `f` must not return a secret by value, since the caller's part of the stack is not overwritten. It can return a
/// `Box` or an `Arc`, or write to memory that is overwritten later.
pub(crate) fn wiping_stack<T>(f: impl FnOnce() -> T) -> T {
    let output = call(f);
    zeroize_stack::<DEPTH>();
    output
}

/// Gives `f` a frame of its own. Inlined, it would use the caller's frame, which is not overwritten.
#[inline(never)]
fn call<T>(f: impl FnOnce() -> T) -> T {
    f()
}
