//! The client of hyper-util: [`HyperAnswerLayer`] for its connectors, and [`Authenticated`] as one of its connections.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer;
use tower_service::Service;

use crate::client::{Answer, AnswerLayer, ConnectError};
use crate::error::BoxError;
use crate::stream::Authenticated;
use crate::transport::Transport;

/// An [`AnswerLayer`] for the connectors of hyper-util's client, such as `HttpConnector`.
///
/// Those connectors return tokio streams within a [`TokioIo`], and the client requires the same of the connector that it
/// is built with. This layer unwraps the stream for the handshake and wraps it again.
///
/// ```
/// use hyper_util::client::legacy::Client;
/// use hyper_util::client::legacy::connect::HttpConnector;
/// use hyper_util::rt::TokioExecutor;
/// use tower::Layer as _;
/// use tower_challenge::{AnswerLayer, HyperAnswerLayer, Key, mutual};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = Key::generate()?;
/// let client = mutual::Client::new("alice", &key, mutual::Audience::new("orders")?)?;
/// let connector =
///     HyperAnswerLayer::new(AnswerLayer::new(client)).layer(HttpConnector::new());
/// let client: Client<_, String> =
///     Client::builder(TokioExecutor::new()).build(connector);
/// # Ok(())
/// # }
/// ```
///
/// What the server has proven is in the extensions of each response. Two futures are allocated for each connection.
#[derive(Clone, Debug)]
pub struct HyperAnswerLayer<C> {
    layer: AnswerLayer<C>,
}

impl<C> HyperAnswerLayer<C> {
    /// Creates a layer that runs the handshake of `layer`.
    pub const fn new(layer: AnswerLayer<C>) -> Self {
        Self { layer }
    }
}

impl<S, C: Clone> Layer<S> for HyperAnswerLayer<C> {
    type Service = HyperAnswer<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        HyperAnswer { answer: self.layer.layer(Unwrap { inner }) }
    }
}

/// A connector of hyper-util whose streams have completed the client's side of a handshake.
///
/// Created by [`HyperAnswerLayer`].
#[derive(Clone, Debug)]
pub struct HyperAnswer<S, C> {
    answer: Answer<Unwrap<S>, C>,
}

impl<S, C, Target, IO, P> Service<Target> for HyperAnswer<S, C>
where
    Answer<Unwrap<S>, C>:
        Service<Target, Response = Authenticated<IO, P>, Error = ConnectError, Future: Send + 'static>,
{
    type Response = TokioIo<Authenticated<IO, P>>;
    type Error = ConnectError;
    // The client requires a future that is `Unpin`.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.answer.poll_ready(cx)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let answer = self.answer.call(target);
        Box::pin(async { answer.await.map(TokioIo::new) })
    }
}

/// A connector that returns the stream within the `TokioIo`. Not nameable.
#[derive(Clone, Debug)]
pub struct Unwrap<S> {
    inner: S,
}

impl<S, Target, IO> Service<Target> for Unwrap<S>
where
    S: Service<Target, Response = TokioIo<IO>, Error: Into<BoxError>, Future: Send + 'static>,
    IO: AsyncRead + AsyncWrite + Transport + Unpin,
{
    type Response = IO;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<IO, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let connecting = self.inner.call(target);
        Box::pin(async { connecting.await.map(TokioIo::into_inner).map_err(Into::into) })
    }
}

/// What the stream within reports; and what the server has proven, in the extensions of each response.
impl<IO, P> Connection for Authenticated<IO, P>
where
    IO: Connection,
    P: Clone + Send + Sync + 'static,
{
    fn connected(&self) -> Connected {
        self.get_ref().connected().extra(self.peer().clone())
    }
}

/// What the transport reports.
#[cfg(feature = "noise")]
impl<IO: Connection> Connection for crate::noise::NoiseStream<IO> {
    fn connected(&self) -> Connected {
        self.get_ref().connected()
    }
}
