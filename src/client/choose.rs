use std::error::Error;
use std::fmt;

use crate::connector::Connector;
use crate::error::{HandshakeError, HandshakeErrorKind};

/// How [`Answer`](super::Answer) finds the key and the settings for a target: a [`Connector`] is the same for all,
/// [`ByTarget`] asks a function.
pub trait Choose<Target> {
    /// The mechanism.
    type Mechanism;
    /// How to learn what surrounds the stream, see [`Connector::inspect`].
    type Inspect;

    /// What to connect to `target` with.
    ///
    /// # Errors
    ///
    /// [`HandshakeErrorKind::KeySource`] if there is nothing for this target. No connection is made then.
    fn choose(&self, target: &Target) -> Result<Connector<Self::Mechanism, Self::Inspect>, HandshakeError>;
}

impl<Target, M, X: Clone> Choose<Target> for Connector<M, X> {
    type Mechanism = M;
    type Inspect = X;

    fn choose(&self, _: &Target) -> Result<Connector<M, X>, HandshakeError> {
        Ok(self.clone())
    }
}

/// Asks a function of the target, `Fn(&Target) -> Result<Connector<M, X>, E>`.
#[derive(Clone)]
pub struct ByTarget<F>(pub(super) F);

impl<Target, M, X, F, E> Choose<Target> for ByTarget<F>
where
    F: Fn(&Target) -> Result<Connector<M, X>, E>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Mechanism = M;
    type Inspect = X;

    fn choose(&self, target: &Target) -> Result<Connector<M, X>, HandshakeError> {
        (self.0)(target).map_err(|error| HandshakeError::with_source(HandshakeErrorKind::KeySource, error))
    }
}

impl<F> fmt::Debug for ByTarget<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByTarget").finish_non_exhaustive()
    }
}
