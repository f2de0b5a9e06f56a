//! What `trace` has, of no size and without any effect.

use std::net::{IpAddr, SocketAddr};

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism;

#[derive(Clone)]
pub(crate) struct Span;

#[must_use]
pub(crate) struct Entered;

impl Span {
    #[expect(clippy::unused_self, reason = "that of `trace` does something")]
    pub(crate) const fn enter(&self) -> Entered {
        Entered
    }
}

pub(super) struct Handshake;

#[expect(clippy::unused_self, reason = "that of `trace` does something")]
impl Handshake {
    pub(super) const fn none() -> Self {
        Self
    }

    pub(super) const fn begin(_: &'static str, _: Option<SocketAddr>, _: &Failures) -> Self {
        Self
    }

    pub(super) const fn span(&self) -> Span {
        Span
    }

    pub(super) const fn succeeded<H: mechanism::Handshake>(&mut self, _: &H::Peer) {}

    pub(super) const fn failed(&mut self, _: &HandshakeError) {}
}

pub(crate) struct Failures;

impl Failures {
    pub(crate) const fn new() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "that of `trace` does something")]
    pub(super) const fn not_admitted(&self, _: Option<IpAddr>, _: HandshakeErrorKind) {}
}

const _: () = assert!(size_of::<Span>() == 0 && size_of::<Handshake>() == 0 && size_of::<Failures>() == 0);
