//! The outcomes of a handshake and their names.

use crate::error::HandshakeErrorKind;

/// Calls a macro with each error kind and its name in `snake_case`.
macro_rules! for_each_kind {
    ($then:ident!($($before:tt)*)) => {
        $then! {
            $($before)*
            Refused refused, TimedOut timed_out, UnexpectedEof unexpected_eof, Probe probe, Malformed malformed, Io io,
            ServerNotAuthenticated server_not_authenticated, ChannelBinding channel_binding, Random random,
            KeySource key_source, Revoked revoked, ShuttingDown shutting_down, SourceLimit source_limit,
            Overloaded overloaded, Evicted evicted, Throttled throttled
        }
    };
}
#[cfg(feature = "tracing")]
pub(super) use for_each_kind;

/// The outcome of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failed(HandshakeErrorKind),
    /// The future was dropped before the handshake completed.
    Abandoned,
}

impl Outcome {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed(kind) => name(kind),
            Self::Abandoned => "abandoned",
        }
    }
}

macro_rules! name {
    ($($kind:ident $name:ident),*) => {
        /// Returns the name of the kind in `snake_case`.
        pub(super) const fn name(kind: HandshakeErrorKind) -> &'static str {
            // Does not compile if a kind is missing in `for_each_kind`.
            match kind {
                $(HandshakeErrorKind::$kind => stringify!($name),)*
            }
        }
    };
}
for_each_kind!(name!());
