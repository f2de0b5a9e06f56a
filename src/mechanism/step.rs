use std::convert::Infallible;
use std::fmt;
use std::future::Pending;

use tokio_util::codec::Decoder;

use super::Handshake;
use crate::error::HandshakeError;

/// The beginning of a handshake, as returned by [`Mechanism::start`](super::Mechanism::start).
pub struct Start<H: Handshake> {
    /// The codec that frames the messages of this connection.
    pub codec: H::Codec,
    /// The state machine, in its state after `send` was sent.
    pub handshake: H,
    /// The first message, if this side speaks first.
    pub send: Option<H::Message>,
}

/// The input of a [step](Handshake::step).
///
/// In a mechanism without lookups, `let Input::Frame(frame) = input;` is irrefutable.
pub enum Input<H: Handshake> {
    /// The peer's next message.
    Frame(<H::Codec as Decoder>::Item),
    /// The output of the lookup that the previous step requested.
    Found(<H::Lookup as Future>::Output),
}

/// How a handshake continues. The driver sends only what a step returns.
pub enum Step<H: Handshake> {
    /// Send a message, if there is one, and wait for the peer's next message.
    Continue {
        /// The message to send.
        send: Option<H::Message>,
    },
    /// Await a lookup, within the deadline, and continue with its output.
    LookUp(H::Lookup),
    /// Send a message, if there is one. The handshake has succeeded when it is written.
    Complete {
        /// The message to send.
        send: Option<H::Message>,
        /// What the handshake has proven about the peer.
        peer: H::Peer,
    },
}

/// A failed handshake: an error for this side and, optionally, a message for the peer.
///
/// A [`HandshakeError`] converts into a `Reject` without a message: the connection is closed.
pub struct Reject<H: Handshake> {
    pub(crate) error: HandshakeError,
    pub(crate) send: Option<H::Message>,
}

impl<H: Handshake> Reject<H> {
    /// Creates a `Reject` that sends `verdict` before the connection is closed, and gives the peer time to read it.
    pub fn with_message(error: HandshakeError, verdict: H::Message) -> Self {
        Self { error, send: Some(verdict) }
    }

    /// Returns the error for this side's log.
    pub fn error(&self) -> &HandshakeError {
        &self.error
    }

    /// Returns the message for the peer, if there is one.
    pub fn verdict(&self) -> Option<&H::Message> {
        self.send.as_ref()
    }
}

impl<H: Handshake> From<HandshakeError> for Reject<H> {
    fn from(error: HandshakeError) -> Self {
        Self { error, send: None }
    }
}

/// The [`Lookup`](Handshake::Lookup) of a mechanism without lookups. It never completes.
pub type NoLookup = Pending<Infallible>;

// `Debug` prints the variants without their messages, which hold nonces and tags.

impl<H: Handshake> fmt::Debug for Start<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("sends", &self.send.is_some()).finish_non_exhaustive()
    }
}

impl<H: Handshake> fmt::Debug for Input<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frame(_) => "Frame(..)",
            Self::Found(_) => "Found(..)",
        })
    }
}

impl<H: Handshake> fmt::Debug for Step<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, send) = match self {
            Self::Continue { send } => ("Continue", send),
            Self::LookUp(_) => return f.write_str("LookUp(..)"),
            Self::Complete { send, .. } => ("Complete", send),
        };
        f.debug_struct(name).field("sends", &send.is_some()).finish_non_exhaustive()
    }
}

impl<H: Handshake> fmt::Debug for Reject<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reject").field("error", &self.error).field("sends", &self.send.is_some()).finish()
    }
}
