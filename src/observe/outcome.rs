//! How a handshake can end, by name.

use crate::error::HandshakeErrorKind;

/// Every kind of failure and its name, for a macro that makes something of all of them.
macro_rules! for_each_kind {
    ($then:ident!($($before:tt)*)) => {
        $then! {
            $($before)*
            Refused refused, TimedOut timed_out, ClosedEarly closed_early, Malformed malformed, Io io,
            ServerUnproven server_unproven, ChannelBinding channel_binding, Random random, KeySource key_source,
            ShuttingDown shutting_down, OverShare over_share, Overloaded overloaded, Shed shed,
            Penalized penalized
        }
    };
}
#[cfg(feature = "tracing")]
pub(super) use for_each_kind;

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failed(HandshakeErrorKind),
    /// Dropped before it was over.
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
        /// The kind in `snake_case`.
        pub(super) const fn name(kind: HandshakeErrorKind) -> &'static str {
            // A kind that is missing above does not compile.
            match kind {
                $(HandshakeErrorKind::$kind => stringify!($name),)*
            }
        }
    };
}
for_each_kind!(name!());
