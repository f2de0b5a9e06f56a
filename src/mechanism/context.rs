use std::error::Error;
use std::fmt;

use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::transport::ChannelBinding;

type FillRandom<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>;

/// The environment of a handshake: a source of random bytes, and the channel binding of the stream.
///
/// [`Acceptor`](crate::Acceptor) and [`Connector`](crate::Connector) always use the operating system's random number
/// generator, and it cannot be replaced. A call takes a few hundred nanoseconds, half a percent of a handshake over
/// loopback. Unlike a generator in user space, it remains secure after forks and restored snapshots.
pub struct Context<'a> {
    random: FillRandom<'a>,
    channel_binding: Option<ChannelBinding>,
}

impl<'a> Context<'a> {
    /// Creates a context whose random bytes come from `random`, for test vectors and for tests of a generator that
    /// fails. A handshake in this context is only as secure as these bytes.
    pub fn with_random(random: FillRandom<'a>) -> Self {
        Self { random, channel_binding: None }
    }

    /// Sets the channel binding. Default: none.
    #[must_use]
    pub fn channel(mut self, binding: Option<ChannelBinding>) -> Self {
        self.channel_binding = binding;
        self
    }

    /// Calls `f` with a context whose random bytes come from the operating system.
    pub(crate) fn of<T>(binding: Option<ChannelBinding>, f: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let mut random = |out: &mut [u8]| SysRng.try_fill_bytes(out).map_err(Into::into);
        f(&mut Context::with_random(&mut random).channel(binding))
    }

    /// Returns the channel binding of the stream, if it has one.
    #[must_use]
    pub fn channel_binding(&self) -> Option<&ChannelBinding> {
        self.channel_binding.as_ref()
    }

    /// Fills `out` with fresh random bytes.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`HandshakeErrorKind::Random`] if there are none. The handshake must then fail:
    /// pass the error on with `?`.
    pub fn fill_random(&mut self, out: &mut [u8]) -> Result<(), HandshakeError> {
        (self.random)(out).map_err(|error| HandshakeError::with_cause(HandshakeErrorKind::Random, error))
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}
