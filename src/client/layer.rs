use tower_layer::Layer;

use super::Answer;
use super::choose::ConnectorFn;
use crate::connector::Connector;
use crate::mechanism::{ClientRole, Mechanism};

/// A layer that runs the client's side of a handshake on every connection that the service within makes.
///
/// The inner service is a connector in tower's terms: a `Service<Target>` whose response is a stream. The layer makes
/// it a connector whose streams are [`Authenticated`](crate::Authenticated).
///
/// ```no_run
/// use tokio::net::TcpStream;
/// use tower::{ServiceBuilder, ServiceExt as _};
/// use tower_challenge::{AnswerLayer, KeyFile, mutual};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyFile::new("keys").read()?;
/// let client = mutual::Client::from_entry(&keys[0], "orders")?;
/// let connector = ServiceBuilder::new()
///     .layer(AnswerLayer::new(client))
///     .service_fn(TcpStream::connect::<&str>);
///
/// let stream = connector.oneshot("127.0.0.1:8888").await?;
/// # Ok(())
/// # }
/// ```
///
/// Its error is [`ConnectError`](super::ConnectError), whatever the error of the inner connector. Readiness is that of
/// the inner connector.
#[derive(Clone, Debug)]
pub struct AnswerLayer<C> {
    choose: C,
}

impl<M> AnswerLayer<Connector<M>> {
    /// Creates a layer that uses this mechanism for every target, with a deadline of
    /// [10 seconds](crate::DEFAULT_TIMEOUT). For another deadline use [`from_connector`](Self::from_connector).
    pub fn new(mechanism: M) -> Self
    where
        M: Mechanism<Role = ClientRole>,
    {
        Self::from_connector(Connector::new(mechanism))
    }

    /// Creates a layer that uses the mechanism and the deadline of `connector` for every target.
    #[must_use]
    pub const fn from_connector(connector: Connector<M>) -> Self {
        Self { choose: connector }
    }
}

impl<F> AnswerLayer<ConnectorFn<F>> {
    /// Creates a layer that calls `f`, a `Fn(&Target) -> Result<Connector<M>, E>`, for each target and uses the
    /// [`Connector`] that it returns: a key for each server, for example.
    ///
    /// If `f` fails, no connection is made, and the error is of the kind
    /// [`KeySource`](crate::HandshakeErrorKind::KeySource).
    pub const fn with_connector_fn(f: F) -> Self {
        Self { choose: ConnectorFn(f) }
    }
}

impl<S, C: Clone> Layer<S> for AnswerLayer<C> {
    type Service = Answer<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Answer::new(inner, self.choose.clone())
    }
}
