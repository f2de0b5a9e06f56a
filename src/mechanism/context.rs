use std::error::Error;
use std::fmt;

use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::error::{HandshakeError, HandshakeErrorKind};

type FillRandom<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>;

/// What surrounds a handshake: today the source of randomness.
///
/// [`Acceptor`](crate::Acceptor) and [`Connector`](crate::Connector) always pass the operating system's generator, and
/// offer no way to exchange it. It costs a few hundred nanoseconds, half a percent of a handshake over loopback, and
/// unlike a generator in user space it survives forks and restored snapshots.
pub struct Context<'a> {
    random: FillRandom<'a>,
}

impl<'a> Context<'a> {
    /// A context whose "random" bytes come from `random`, for test vectors and for tests of what happens when it
    /// fails. A state machine that runs in one is only as good as what it is given.
    pub fn with_random(random: FillRandom<'a>) -> Self {
        Self { random }
    }

    /// Calls `f` with a context whose random bytes come from the operating system.
    pub(crate) fn with_system_random<T>(f: impl FnOnce(&mut Context<'_>) -> T) -> T {
        f(&mut Context { random: &mut |out| SysRng.try_fill_bytes(out).map_err(Into::into) })
    }

    /// Fills `out` with fresh random bytes.
    ///
    /// # Errors
    ///
    /// [`HandshakeErrorKind::Random`] if there are none. The handshake must fail then; `?` is enough.
    pub fn fill_random(&mut self, out: &mut [u8]) -> Result<(), HandshakeError> {
        (self.random)(out).map_err(|error| HandshakeError::with_source(HandshakeErrorKind::Random, error))
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}
