use std::error::Error;
use std::fmt;

use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::transport::ChannelBinding;

type FillRandom<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>;

/// What surrounds a handshake: the source of randomness, and what channel it runs on.
///
/// [`Acceptor`](crate::Acceptor) and [`Connector`](crate::Connector) always pass the operating system's generator, and
/// offer no way to exchange it. It costs a few hundred nanoseconds, half a percent of a handshake over loopback, and
/// unlike a generator in user space it survives forks and restored snapshots.
pub struct Context<'a> {
    random: FillRandom<'a>,
    channel_binding: Option<ChannelBinding>,
}

impl<'a> Context<'a> {
    /// A context whose "random" bytes come from `random`, for test vectors and for tests of what happens when it
    /// fails. A state machine that runs in one is only as good as what it is given.
    pub fn with_random(random: FillRandom<'a>) -> Self {
        Self { random, channel_binding: None }
    }

    /// The same with a channel binding.
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

    /// What channel the handshake runs on, if the stream can say.
    #[must_use]
    pub fn channel_binding(&self) -> Option<&ChannelBinding> {
        self.channel_binding.as_ref()
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
