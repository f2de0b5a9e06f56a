//! What `meter` has, of no size and without any effect.

use crate::error::HandshakeErrorKind;

#[derive(Debug)]
pub(crate) struct Held;

impl Held {
    pub(crate) const fn pending() -> Self {
        Self
    }

    #[cfg(feature = "net")]
    pub(crate) const fn connection() -> Self {
        Self
    }
}

pub(super) struct Handshake;

#[expect(clippy::unused_self, reason = "that of `meter` does something")]
impl Handshake {
    pub(super) const fn none() -> Self {
        Self
    }

    pub(super) const fn begin(_: &'static str) -> Self {
        Self
    }

    pub(super) const fn succeeded(&mut self) {}

    pub(super) const fn failed(&mut self, _: HandshakeErrorKind) {}
}

pub(super) const fn not_admitted(_: HandshakeErrorKind) {}

#[cfg(feature = "net")]
pub(crate) const fn accept_failed(_: &std::io::Error) {}

#[cfg(feature = "net")]
pub(crate) const fn panicked() {}

const _: () = assert!(size_of::<Held>() == 0 && size_of::<Handshake>() == 0);
