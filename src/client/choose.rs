use std::fmt;

use crate::connector::Connector;
use crate::error::{BoxError, HandshakeError, HandshakeErrorKind};

/// How [`Answer`](super::Answer) finds the key and the settings for a target. Not nameable: a [`Connector`] is the same
/// for all targets, and [`ConnectorFn`] asks a function.
pub trait Choose<Target> {
    type Mechanism;

    fn choose(&self, target: &Target) -> Result<Connector<Self::Mechanism>, HandshakeError>;
}

impl<Target, M> Choose<Target> for Connector<M> {
    type Mechanism = M;

    fn choose(&self, _: &Target) -> Result<Self, HandshakeError> {
        Ok(self.clone())
    }
}

/// A function of the target, `Fn(&Target) -> Result<Connector<M>, E>`.
#[derive(Clone)]
pub struct ConnectorFn<F>(pub(super) F);

impl<Target, M, F, E> Choose<Target> for ConnectorFn<F>
where
    F: Fn(&Target) -> Result<Connector<M>, E>,
    E: Into<BoxError>,
{
    type Mechanism = M;

    fn choose(&self, target: &Target) -> Result<Connector<M>, HandshakeError> {
        (self.0)(target).map_err(|error| HandshakeError::with_cause(HandshakeErrorKind::KeySource, error))
    }
}

impl<F> fmt::Debug for ConnectorFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorFn").finish_non_exhaustive()
    }
}
