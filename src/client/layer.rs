use tower_layer::Layer;

use super::{Answer, ByTarget};
use crate::connector::Connector;

/// Puts a handshake behind a connector. Cheap to clone if its function is.
///
/// See the [module](super) for examples.
#[derive(Clone, Debug)]
pub struct AnswerLayer<C> {
    choose: C,
}

impl<M> AnswerLayer<Connector<M>> {
    /// Answers with this mechanism, whatever the target, within [10 seconds](crate::DEFAULT_TIMEOUT).
    pub fn new(mechanism: M) -> Self {
        Self::from_connector(Connector::new(mechanism))
    }
}

impl<M, X> AnswerLayer<Connector<M, X>> {
    /// Answers as `connector` does, whatever the target: with its mechanism and its deadline.
    pub const fn from_connector(connector: Connector<M, X>) -> Self {
        Self { choose: connector }
    }
}

impl<F> AnswerLayer<ByTarget<F>> {
    /// Answers as the [`Connector`] does that `choose`, a `Fn(&Target) -> Result<Connector<M, X>, E>`, returns. An
    /// error of it is one of [kind `KeySource`](crate::HandshakeErrorKind::KeySource), and no connection is made.
    pub const fn by_target(choose: F) -> Self {
        Self { choose: ByTarget(choose) }
    }
}

impl<S, C: Clone> Layer<S> for AnswerLayer<C> {
    type Service = Answer<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Answer::new(inner, self.choose.clone())
    }
}
