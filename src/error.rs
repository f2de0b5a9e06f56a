//! Why a handshake failed.

use std::error::Error;
use std::fmt;
use std::io;

type Source = Box<dyn Error + Send + Sync>;

/// What kind of end a handshake came to when it did not succeed.
///
/// The kinds are what a program decides by; the details are for people, in [`HandshakeError::source`](Error::source).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeErrorKind {
    /// The proof did not convince. On the server's side: this peer was turned away. On the client's side: the
    /// server said so.
    Refused,
    /// The deadline passed before the handshake was over.
    TimedOut,
    /// The peer closed or reset the connection before the handshake was over, in the middle of a message or
    /// between two.
    ClosedEarly,
    /// The peer sent what this wire does not allow.
    Malformed,
    /// Reading from the stream or writing to it failed.
    Io,
    /// The server accepted, but has not proven that it holds the key itself: it is not the one that was meant, or
    /// somebody is in between.
    ServerUnproven,
    /// A channel binding was required, and the stream has none. Nothing has been sent.
    ChannelBinding,
    /// The operating system gave no random bytes. The peer has done nothing wrong.
    Random,
    /// There was no key to be had: its source failed, did not answer within the deadline, or has none for this
    /// target. The peer has done nothing wrong.
    KeySource,
    /// This side is shutting down, and ended the handshake before it was over.
    ShuttingDown,
    /// Not begun: the peer's source has as many pending as it may have. This and what follows is decided by
    /// [admission](crate::admission), on the server's side; the peer sees a close.
    OverShare,
    /// Not begun: as many as there may be have proven themselves, and all of them wait for the inner service.
    Overloaded,
    /// Ended before it was over, in favour of a newcomer: of the source whose handshakes had been pending for
    /// longest, all together, it was the oldest.
    Shed,
    /// Not begun: the peer's source has failed too often.
    Penalized,
}

impl HandshakeErrorKind {
    const fn description(self) -> &'static str {
        match self {
            Self::Refused => "handshake refused",
            Self::TimedOut => "handshake timed out",
            Self::ClosedEarly => "peer closed before the handshake was over",
            Self::Malformed => "malformed handshake message",
            Self::Io => "input or output failed during the handshake",
            Self::ServerUnproven => "the server has not proven that it holds the key",
            Self::ChannelBinding => "the stream has no channel binding, and one is required",
            Self::Random => "no random bytes for the handshake",
            Self::KeySource => "no key for the handshake",
            Self::ShuttingDown => "shut down before the handshake was over",
            Self::OverShare => "too many pending handshakes of this source",
            Self::Overloaded => "too many authenticated peers wait for the service",
            Self::Shed => "ended in favour of a newcomer",
            Self::Penalized => "too many failed handshakes of this source",
        }
    }
}

impl fmt::Display for HandshakeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

/// A handshake that did not succeed.
///
/// Opaque but for its [`kind`](Self::kind); what lies beneath is kept as the error's
/// [`source`](Error::source). It holds no secret: no key, no tag, no nonce. What the *peer* is told is a matter of
/// the mechanism, and never says why.
#[derive(Debug)]
pub struct HandshakeError {
    kind: HandshakeErrorKind,
    source: Option<Source>,
}

impl HandshakeError {
    /// An error of this kind, for mechanisms outside this crate and for tests of code that handles errors.
    #[must_use]
    pub const fn new(kind: HandshakeErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// The same with what lies beneath.
    #[must_use]
    pub fn with_source(kind: HandshakeErrorKind, source: impl Into<Source>) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// A proof that does not convince.
    #[must_use]
    pub const fn refused() -> Self {
        Self::new(HandshakeErrorKind::Refused)
    }

    /// A message that this wire does not allow. `detail` says what is wrong with it, without its bytes.
    #[must_use]
    pub fn malformed(detail: &'static str) -> Self {
        Self::with_source(HandshakeErrorKind::Malformed, detail)
    }

    /// A stream that ended in the middle of a message: what a codec's `decode_eof` returns.
    #[must_use]
    pub fn truncated() -> Self {
        Self::with_source(HandshakeErrorKind::ClosedEarly, "the stream ended in the middle of a message")
    }

    /// What kind of end it was.
    #[must_use]
    pub const fn kind(&self) -> HandshakeErrorKind {
        self.kind
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error for HandshakeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<HandshakeErrorKind> for HandshakeError {
    fn from(kind: HandshakeErrorKind) -> Self {
        Self::new(kind)
    }
}

/// Data that make no sense are [`Malformed`](HandshakeErrorKind::Malformed): that is how other codecs say so, and TLS.
/// A reset is a close without manners, and TLS streams say "unexpected end of file" when the peer is gone: both are
/// [`ClosedEarly`](HandshakeErrorKind::ClosedEarly). All else is [`Io`](HandshakeErrorKind::Io).
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof, WriteZero,
        };
        let kind = match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof | WriteZero => {
                HandshakeErrorKind::ClosedEarly
            }
            InvalidData => HandshakeErrorKind::Malformed,
            _ => HandshakeErrorKind::Io,
        };
        Self::with_source(kind, error)
    }
}
