//! Steps between accept and handshake, such as TLS and the PROXY protocol.
//!
//! A step takes the accepted connection and returns the stream for the handshake. Set it with
//! [`ChallengeLayer::prepare`](crate::ChallengeLayer::prepare) or [`Acceptor::prepare`](crate::Acceptor::prepare). It
//! works the same with `serve`, with `Incoming` and with an accept loop of your own. Any `Fn(IO) -> Future` is a step:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tokio::net::TcpStream;
//! use tower_challenge::{ChallengeLayer, Connection, mutual};
//! # type TlsStream<T> = Connection<T>;
//! # #[derive(Clone)] struct TlsAcceptor;
//! # impl TlsAcceptor {
//! #     async fn accept<T>(&self, io: Connection<T>) -> std::io::Result<TlsStream<T>> { Ok(io) }
//! # }
//!
//! # fn example(server: mutual::Server<mutual::KeyRing>, tls: TlsAcceptor) {
//! let layer = ChallengeLayer::new(server.require_channel_binding())
//!     .prepare(move |connection: Connection<TcpStream>| {
//!         let tls = tls.clone();
//!         async move { tls.accept(connection).await }
//!     });
//! # }
//! ```
//!
//! [`then_prepare`](crate::ChallengeLayer::then_prepare) adds a further step, which runs after those before it.
//!
//! # Steps are part of the handshake
//!
//! Each connection has its own task with `serve` and `Incoming`, and steps run there, so a slow peer delays no other.
//!
//! - **Admission.** A step holds the handshake's [slot](crate::admission): it counts as in flight and can be evicted.
//! - **Deadline.** All steps and the handshake share one deadline,
//!   [`ChallengeLayer::timeout`](crate::ChallengeLayer::timeout).
//! - **Shutdown.** A shutdown ends a step at once.
//! - **Errors.** The error of a step is the error of the handshake: it is reported, counted and penalized in the same
//!   way. [`HandshakeError`] converts from [`io::Error`](std::io::Error), and TLS reports invalid input as
//!   [`Malformed`](crate::HandshakeErrorKind::Malformed).
//!
//! # The peer's address
//!
//! If the stream that a step returns reports another peer address, the slot moves to the source of that address, with
//! its age. If that source is throttled or at its limit, the connection is closed with
//! [`Throttled`](crate::HandshakeErrorKind::Throttled) or [`SourceLimit`](crate::HandshakeErrorKind::SourceLimit).
//! `Incoming` and the [span](crate::observe) of the connection have the new address as well. A stream that reports no
//! address keeps the previous one.
//!
//! The feature `proxy-protocol` adds such a step, `ProxyProtocol`, for servers behind a load balancer.
//!
//! # Cancel safety
//!
//! A step that fails, is evicted, or exceeds the deadline is dropped, and the connection with it. So the future of a
//! step must not leave the connection to another task.

mod attribution;
mod once;
#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;
mod then;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

#[doc(hidden)]
pub use self::attribution::{Attribute, Attribution};
use self::once::Once;
#[cfg(feature = "proxy-protocol")]
pub use self::proxy_protocol::{Proxied, ProxyHeader, ProxyProtocol};
pub use self::then::Then;
use crate::error::HandshakeError;
use crate::transport::{Transport, TransportInfo};

/// A step between accept and handshake.
///
/// Implemented for every `Fn(IO) -> impl Future<Output = Result<T, E>>`, if `T` implements [`Transport`] and `E` converts
/// into [`HandshakeError`], as [`io::Error`](std::io::Error) does. This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a step that prepares `{IO}` for a handshake",
    note = "a step is a function of the stream: `Fn({IO}) -> impl Future<Output = Result<T, E>>`, with `T: Transport` and `E: Into<HandshakeError>`"
)]
pub trait Prepare<IO>: sealed::Sealed<IO> {
    /// The stream for the handshake.
    type Stream;

    /// The step in progress.
    #[doc(hidden)]
    type Progress: Progress<Stream = Self::Stream>;

    /// Starts the step on a stream with these metadata.
    #[doc(hidden)]
    fn start(&self, io: IO, info: &TransportInfo) -> Start<Self::Stream, Self::Progress>;

    /// Whether the source of a connection with these metadata is known only after the step.
    #[doc(hidden)]
    fn defers_source(&self, _info: &TransportInfo) -> bool {
        false
    }
}

/// A step that has been started.
#[doc(hidden)]
#[derive(Debug)]
pub enum Start<T, P> {
    /// It is complete already.
    Ready(T),
    /// It is in progress.
    InProgress(P),
}

/// A step in progress. Like a future, but with access to the slot and the span of its connection.
#[doc(hidden)]
pub trait Progress {
    type Stream;

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attribute: &mut Attribute<'_>,
    ) -> Poll<Result<Self::Stream, HandshakeError>>;
}

/// No step, the default: the handshake runs on the accepted stream itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPrepare;

impl<IO> Prepare<IO> for NoPrepare {
    type Stream = IO;
    type Progress = Never<IO>;

    fn start(&self, io: IO, _: &TransportInfo) -> Start<IO, Never<IO>> {
        Start::Ready(io)
    }
}

/// A step that is never in progress.
#[doc(hidden)]
#[derive(Debug)]
pub struct Never<IO> {
    never: Infallible,
    stream: std::marker::PhantomData<fn() -> IO>,
}

impl<IO> Progress for Never<IO> {
    type Stream = IO;

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut Attribute<'_>,
    ) -> Poll<Result<IO, HandshakeError>> {
        match self.never {}
    }
}

impl<IO, F, Fut, T, E> Prepare<IO> for F
where
    F: Fn(IO) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    T: Transport,
    E: Into<HandshakeError>,
{
    type Stream = T;
    type Progress = Once<Fut>;

    fn start(&self, io: IO, _: &TransportInfo) -> Start<T, Once<Fut>> {
        Start::InProgress(Once::new(self(io)))
    }
}

mod sealed {
    pub trait Sealed<IO> {}

    impl<IO> Sealed<IO> for super::NoPrepare {}
    impl<IO, F: Fn(IO) -> Fut, Fut> Sealed<IO> for F {}
    impl<IO, A: super::Prepare<IO>, B: super::Prepare<A::Stream>> Sealed<IO> for super::Then<A, B> {}
}
