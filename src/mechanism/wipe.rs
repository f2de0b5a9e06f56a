use zeroize::zeroize_stack;

/// How much of the stack is overwritten, in bytes.
///
/// Measured: the server's answer of `noise` uses the most, 2.8 KiB, and 7.4 KiB without optimizations. The rest is spare,
/// for other processors and compilers. To overwrite 8 KiB takes some 70 ns.
pub(crate) const DEPTH: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 8 * 1024 };

/// Calls `f`, which computes with a secret, and then overwrites the part of the stack that it used.
///
/// The types of RustCrypto overwrite their memory when they are dropped. They do not overwrite what they compute with:
/// padded blocks, intermediate values, and the copies that moves leave.
///
/// `f` must not return a secret by value, since the caller's part of the stack is not overwritten. It can return a
/// `Box` or an `Arc`, or write to memory that is overwritten later.
pub(crate) fn wiping_stack<T>(f: impl FnOnce() -> T) -> T {
    wiping_stack_by::<DEPTH, _>(f)
}

/// Like [`wiping_stack`], for a computation whose part of the stack is known.
pub(crate) fn wiping_stack_by<const DEPTH: usize, T>(f: impl FnOnce() -> T) -> T {
    let output = call(f);
    zeroize_stack::<DEPTH>();
    output
}

/// Gives `f` a frame of its own. Inlined, it would use the caller's frame, which is not overwritten.
#[inline(never)]
fn call<T>(f: impl FnOnce() -> T) -> T {
    f()
}
