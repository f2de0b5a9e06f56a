//! Errors of a handshake.

mod claimed_key_id;
mod refusal;

use std::error::Error;
use std::fmt;
use std::io;

pub use self::claimed_key_id::ClaimedKeyId;
pub use self::refusal::RefusalReason;
use crate::client::ConnectError;
use crate::server::AcceptError;

/// An error of any type, as tower and axum name it too.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Implements `Debug` by `Display`.
///
/// A program whose `main` returns a `Result` prints the `Debug` form of an error, and that is where the text is needed
/// most.
macro_rules! debug_as_display {
    ($error:ident $(<$A:ident: $bound:path>)?) => {
        impl$(<$A: $bound>)? std::fmt::Debug for $error$(<$A>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}
pub(crate) use debug_as_display;

/// The reason a handshake failed.
///
/// Programs decide by the kind. [`HandshakeError`] adds the details that people need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeErrorKind {
    /// The proof was rejected. On the server's side the peer did not prove that it holds a key; on the client's side
    /// the server said so.
    Refused,
    /// The deadline passed before the handshake completed.
    TimedOut,
    /// The peer closed or reset the connection before the handshake completed.
    UnexpectedEof,
    /// The peer closed or reset the connection without having sent anything: a port scan or a health check, or a client
    /// that uses another mechanism or stopped.
    Probe,
    /// The peer sent something that the mechanism does not allow. It may use another mechanism or another protocol.
    Malformed,
    /// Reading from the stream or writing to it failed.
    Io,
    /// The server accepted the client but did not prove that it holds the key: it is the wrong server, or an
    /// intermediary.
    ServerNotAuthenticated,
    /// A channel binding is required, and the stream has none. Nothing was sent.
    ChannelBinding,
    /// The operating system returned no random bytes. The peer is not at fault.
    Random,
    /// No key was available: the key source failed, did not answer within the deadline, or has no key for this target.
    /// The peer is not at fault.
    KeySource,
    /// The key was revoked between its lookup and the end of the handshake. The client may have been told that it is
    /// accepted; then the connection closes.
    Revoked,
    /// This side shut down before the handshake completed.
    ShuttingDown,
    /// The peer's source already has as many handshakes in flight as it may have. Decided before the handshake starts, or
    /// once a [step before it](crate::prepare) tells the source.
    ///
    /// This kind and the following ones are decided by [admission control](crate::admission) on the server's side. The
    /// peer sees a closed connection.
    SourceLimit,
    /// Not started: all handshakes that may be in flight have succeeded and wait for the inner service.
    Overloaded,
    /// Evicted in favor of a new connection: it was the oldest handshake of the heaviest source.
    Evicted,
    /// The peer's source failed too often and is refused for a while. Decided at the same times as `SourceLimit`.
    Throttled,
}

impl HandshakeErrorKind {
    const fn description(self) -> &'static str {
        match self {
            Self::Refused => "handshake refused",
            Self::TimedOut => "handshake timed out",
            Self::UnexpectedEof => "connection closed before the handshake completed",
            Self::Probe => "connection closed before the peer sent anything",
            Self::Malformed => "malformed handshake message",
            Self::Io => "I/O error during the handshake",
            Self::ServerNotAuthenticated => "the server did not prove that it holds the key",
            Self::ChannelBinding => "a channel binding is required, and the stream has none",
            Self::Random => "the operating system returned no random bytes",
            Self::KeySource => "no key available for the handshake",
            Self::Revoked => "the key of the peer was revoked",
            Self::ShuttingDown => "shut down before the handshake completed",
            Self::SourceLimit => "too many handshakes in flight from this source",
            Self::Overloaded => "too many authenticated peers wait for the service",
            Self::Evicted => "evicted in favor of a new connection",
            Self::Throttled => "this source failed too often and is refused for now",
        }
    }
}

impl fmt::Display for HandshakeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

/// A handshake that failed.
///
/// `Display` prints the [`kind`](Self::kind) and the details, such as the text of an underlying I/O error;
/// [`source`](Error::source) continues with what lies beneath that error. The error contains no secret: no key, no
/// tag, no nonce. The peer never learns the details.
///
/// # Finding it in another error
///
/// [`AcceptError`] and [`ConnectError`] hold a `HandshakeError`, and other layers may wrap those again.
/// [`find_in`](Self::find_in) searches the whole chain:
///
/// ```
/// use tower_challenge::{AcceptError, HandshakeError, HandshakeErrorKind};
///
/// let inner = AcceptError::Handshake(HandshakeError::refused());
/// let wrapped = std::io::Error::other(inner);
///
/// let error = HandshakeError::find_in(&wrapped).expect("it is in there");
/// assert_eq!(error.kind(), HandshakeErrorKind::Refused);
/// ```
pub struct HandshakeError {
    kind: HandshakeErrorKind,
    detail: Detail,
}

enum Detail {
    None,
    Text(&'static str),
    Error(BoxError),
    // Not boxed: refusing a peer allocates nothing.
    Refusal(RefusalReason, Option<ClaimedKeyId>),
}

impl HandshakeError {
    /// Creates an error of this kind without details, for mechanisms outside this crate and for tests.
    #[must_use]
    pub const fn new(kind: HandshakeErrorKind) -> Self {
        Self { kind, detail: Detail::None }
    }

    /// Creates an error of this kind that was caused by `error`.
    #[must_use]
    pub fn with_cause(kind: HandshakeErrorKind, error: impl Into<BoxError>) -> Self {
        Self { kind, detail: Detail::Error(error.into()) }
    }

    /// Creates an error of this kind with a detail that `Display` prints after the kind.
    #[must_use]
    pub const fn with_detail(kind: HandshakeErrorKind, detail: &'static str) -> Self {
        Self { kind, detail: Detail::Text(detail) }
    }

    /// Creates an error for a proof that was rejected, without a reason: the client's view of it.
    #[must_use]
    pub const fn refused() -> Self {
        Self::new(HandshakeErrorKind::Refused)
    }

    /// Creates an error for a proof that this side rejected. The reason is for this side's log; the peer must not
    /// learn it.
    #[must_use]
    pub const fn refused_because(reason: RefusalReason) -> Self {
        Self { kind: HandshakeErrorKind::Refused, detail: Detail::Refusal(reason, None) }
    }

    /// Adds the key id that the peer claimed to a [`refused_because`](Self::refused_because) error. Has no effect on
    /// other errors.
    #[must_use]
    pub fn with_claimed_key_id(mut self, id: ClaimedKeyId) -> Self {
        if let Detail::Refusal(_, claimed) = &mut self.detail {
            *claimed = Some(id);
        }
        self
    }

    /// Creates an error for a message that the mechanism does not allow. `detail` says what is wrong with it and must
    /// not repeat its bytes.
    #[must_use]
    pub const fn malformed(detail: &'static str) -> Self {
        Self::with_detail(HandshakeErrorKind::Malformed, detail)
    }

    /// Creates an error for a stream that ended in the middle of a message.
    #[must_use]
    pub const fn truncated() -> Self {
        Self::with_detail(HandshakeErrorKind::UnexpectedEof, "the stream ended in the middle of a message")
    }

    /// Returns the reason as a program needs it.
    #[must_use]
    pub const fn kind(&self) -> HandshakeErrorKind {
        self.kind
    }

    /// Returns the underlying error, if there is one, such as the [`io::Error`] of the stream.
    ///
    /// Like [`io::Error::get_ref`]: [`source`](Error::source) begins below this error, since `Display` includes it.
    #[must_use]
    pub fn get_ref(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match &self.detail {
            Detail::Error(error) => Some(&**error),
            Detail::None | Detail::Text(_) | Detail::Refusal(..) => None,
        }
    }

    /// Returns why this side rejected the proof. `None` on the client's side, which never learns it, and if the peer
    /// speaks another protocol.
    #[must_use]
    pub const fn refusal_reason(&self) -> Option<RefusalReason> {
        match &self.detail {
            Detail::Refusal(reason, _) => Some(*reason),
            Detail::None | Detail::Text(_) | Detail::Error(_) => None,
        }
    }

    /// Returns the key id that the refused peer claimed, if its mechanism sends one. The peer chose it freely and
    /// proved nothing.
    #[must_use]
    pub fn claimed_key_id(&self) -> Option<&ClaimedKeyId> {
        match &self.detail {
            Detail::Refusal(_, claimed) => claimed.as_ref(),
            Detail::None | Detail::Text(_) | Detail::Error(_) => None,
        }
    }

    /// Searches `error` and the errors that it wraps for a `HandshakeError`.
    ///
    /// Looks into [`AcceptError`], [`ConnectError`] and [`io::Error`], and follows [`source`](Error::source) of
    /// everything else. An `anyhow::Error` that was created from one of these errors without a context hides it once it is
    /// boxed: search before the conversion, or add a context.
    /// For `ServeError`, which is generic, see its method `handshake_error`.
    pub fn find_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|error| error.downcast_ref())
    }

    /// Like [`find_in`](Self::find_in), but skips what [`AcceptError::Service`] wraps: the session may have failed because
    /// of a handshake with another peer.
    #[cfg(feature = "net")]
    pub(crate) fn find_before_session<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let is_of_session =
            |error: &(dyn Error + 'static)| matches!(error.downcast_ref(), Some(AcceptError::Service(_)));
        chain(error).take_while(|error| !is_of_session(*error)).find_map(|error| error.downcast_ref())
    }

    /// The same cause, for a peer that sent nothing.
    pub(crate) fn into_probe(self) -> Self {
        Self { kind: HandshakeErrorKind::Probe, ..self }
    }

    pub(crate) const fn has_detail(&self) -> bool {
        !matches!(self.detail, Detail::None)
    }

    pub(crate) const fn detail_text(&self) -> Option<&'static str> {
        match self.detail {
            Detail::Text(text) => Some(text),
            Detail::None | Detail::Error(_) | Detail::Refusal(..) => None,
        }
    }
}

/// Returns `error` and the errors that it wraps.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| wrapped(error).or_else(|| error.source()))
}

/// The error within one whose `source` begins below it.
fn wrapped<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<AcceptError>() {
        return match error {
            AcceptError::Handshake(error) => Some(error),
            AcceptError::Service(error) => Some(&**error),
            AcceptError::NotReady | AcceptError::Revoked => None,
        };
    }
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return match error {
            ConnectError::Handshake(error) => Some(error),
            ConnectError::Connect(error) => Some(&**error),
        };
    }
    error.downcast_ref::<io::Error>()?.get_ref().map(|error| error as _)
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match &self.detail {
            Detail::None => {}
            Detail::Text(text) => write!(f, ": {text}")?,
            Detail::Error(error) => write!(f, ": {error}")?,
            Detail::Refusal(reason, claimed) => {
                write!(f, ": {reason}")?;
                if let Some(id) = claimed {
                    write!(f, " (claimed key id \"{id}\")")?;
                }
            }
        }
        Ok(())
    }
}

debug_as_display!(HandshakeError);

impl Error for HandshakeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.get_ref()?.source()
    }
}

impl From<HandshakeErrorKind> for HandshakeError {
    fn from(kind: HandshakeErrorKind) -> Self {
        Self::new(kind)
    }
}

/// Maps the kinds of I/O errors.
///
/// - [`InvalidData`](io::ErrorKind::InvalidData) becomes [`Malformed`](HandshakeErrorKind::Malformed): codecs and TLS
///   report invalid input in this way.
/// - A reset, an abort, a broken pipe and an unexpected end of file become
///   [`UnexpectedEof`](HandshakeErrorKind::UnexpectedEof).
/// - Everything else becomes [`Io`](HandshakeErrorKind::Io).
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof, WriteZero,
        };
        let kind = match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof | WriteZero => {
                HandshakeErrorKind::UnexpectedEof
            }
            InvalidData => HandshakeErrorKind::Malformed,
            _ => HandshakeErrorKind::Io,
        };
        Self::with_cause(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(BoxError);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a layer failed")
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn found_through_every_wrapper() {
        let wrappers: [fn(BoxError) -> BoxError; 4] = [
            |error| Layer(error).into(),
            |error| io::Error::other(error).into(),
            |error| AcceptError::Service(error).into(),
            |error| ConnectError::Connect(error).into(),
        ];
        let innermost: [fn() -> BoxError; 3] = [
            || HandshakeError::refused().into(),
            || AcceptError::Handshake(HandshakeError::refused()).into(),
            || ConnectError::Handshake(HandshakeError::refused()).into(),
        ];
        for inner in innermost {
            assert!(HandshakeError::find_in(&*inner()).is_some());
            for first in wrappers {
                for second in wrappers {
                    let error = second(first(inner()));
                    assert!(HandshakeError::find_in(&*error).is_some(), "{error}");
                }
            }
        }
        assert!(HandshakeError::find_in(&AcceptError::NotReady).is_none());
        #[cfg(feature = "net")]
        {
            let own = AcceptError::Handshake(HandshakeError::refused());
            assert!(HandshakeError::find_before_session(&Layer(own.into())).is_some());
            let of_session = AcceptError::Service(HandshakeError::refused().into());
            assert!(HandshakeError::find_before_session(&Layer(of_session.into())).is_none());
        }
        assert!(HandshakeError::find_in(&io::Error::from(io::ErrorKind::NotFound)).is_none());
    }

    #[test]
    fn display_includes_the_cause_and_source_continues_below_it() {
        let io = io::Error::other(Layer("disk full".into()));
        let error = HandshakeError::from(io);
        assert_eq!(error.to_string(), "I/O error during the handshake: a layer failed");
        assert_eq!(error.source().unwrap().to_string(), "disk full");
        assert!(error.get_ref().unwrap().is::<io::Error>());
        assert_eq!(format!("{error:?}"), error.to_string());
    }

    #[test]
    fn refusal_reason_and_claimed_id() {
        let error = HandshakeError::refused_because(RefusalReason::UnknownKeyId)
            .with_claimed_key_id(ClaimedKeyId::new(b"alice"));
        assert_eq!(error.to_string(), "handshake refused: unknown key id (claimed key id \"alice\")");
        assert_eq!(error.refusal_reason(), Some(RefusalReason::UnknownKeyId));
        assert_eq!(HandshakeError::refused().refusal_reason(), None);
    }
}
