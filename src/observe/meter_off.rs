//! The interface of `meter` without the feature `metrics`: types of size zero and functions without effect.

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

#[expect(clippy::unused_self, reason = "same signature as in `meter`")]
impl Handshake {
    pub(super) const fn none() -> Self {
        Self
    }

    pub(super) const fn begin(_: &'static str, _: &'static str) -> Self {
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

#[cfg(feature = "net")]
pub(crate) const fn error_dropped() {}

#[cfg(feature = "net")]
pub(crate) const fn callback_panicked() {}

const _: () = assert!(size_of::<Held>() == 0 && size_of::<Handshake>() == 0);
