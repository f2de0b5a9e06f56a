//! The interface of `trace` without the feature `tracing`: types of size zero and functions without effect.

use std::net::{IpAddr, SocketAddr};

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism;

#[derive(Clone)]
pub(crate) struct Span;

#[must_use]
pub(crate) struct Entered;

impl Span {
    #[expect(clippy::unused_self, reason = "same signature as in `trace`")]
    pub(crate) const fn enter(&self) -> Entered {
        Entered
    }
}

pub(super) struct Handshake;

#[expect(clippy::unused_self, reason = "same signature as in `trace`")]
impl Handshake {
    pub(super) const fn none() -> Self {
        Self
    }

    pub(super) const fn begin(_: &'static str, _: &'static str, _: Option<SocketAddr>, _: &Failures) -> Self {
        Self
    }

    pub(super) const fn set_peer_addr(&mut self, _: Option<SocketAddr>) {}

    pub(super) const fn span(&self) -> Span {
        Span
    }

    pub(super) const fn succeeded<H: mechanism::Handshake>(&mut self, _: &H::Peer) {}

    pub(super) const fn failed(&mut self, _: &HandshakeError) {}
}

#[derive(Clone)]
pub(crate) struct Failures;

impl Failures {
    pub(crate) const fn new() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "same signature as in `trace`")]
    pub(super) const fn not_admitted(&self, _: Option<IpAddr>, _: HandshakeErrorKind) {}
}

#[cfg(feature = "net")]
pub(crate) const fn serve_error<A>(_: &crate::serve::ServeError<A>) {}

const _: () = assert!(size_of::<Span>() == 0 && size_of::<Handshake>() == 0 && size_of::<Failures>() == 0);
