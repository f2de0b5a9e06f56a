use std::convert::Infallible;
use std::fmt;
use std::future::Pending;

use tokio_util::codec::Decoder;

use super::Handshake;
use crate::error::HandshakeError;

/// How a handshake begins.
pub struct Start<H: Handshake> {
    /// The codec that frames the messages of this connection.
    pub codec: H::Codec,
    /// The state machine, as it is once `send` has been sent.
    pub handshake: H,
    /// The first message, from the side that speaks first.
    pub send: Option<H::Message>,
}

/// What a step is given.
///
/// Where there is no lookup, `let Input::Frame(frame) = input;` is all there is to take apart.
pub enum Input<H: Handshake> {
    /// The next message of the peer.
    Frame(<H::Codec as Decoder>::Item),
    /// What the lookup that the last step asked for came to.
    Found(<H::Lookup as Future>::Output),
}

/// How a handshake goes on. What is sent when is part of the answer: nothing else is.
pub enum Step<H: Handshake> {
    /// Send this, if anything, and wait for the peer's next message.
    Continue {
        /// What to send.
        send: Option<H::Message>,
    },
    /// Ask this, within the deadline, and go on with what comes of it.
    LookUp(H::Lookup),
    /// Send this, if anything; once it is written the peer has proven itself, and the handshake is over.
    Complete {
        /// What to send.
        send: Option<H::Message>,
        /// What has been proven.
        peer: H::Peer,
    },
}

/// How a handshake ends when it does not succeed: with a message for the peer, or with a close.
///
/// A bare [`HandshakeError`] converts into one that closes and says nothing.
pub struct Reject<H: Handshake> {
    pub(crate) error: HandshakeError,
    pub(crate) send: Option<H::Message>,
}

impl<H: Handshake> Reject<H> {
    /// Sends `verdict` before the connection is closed, and gives the peer the chance to read it.
    pub fn telling(error: HandshakeError, verdict: H::Message) -> Self {
        Self { error, send: Some(verdict) }
    }

    /// Why, for this side's log.
    pub fn error(&self) -> &HandshakeError {
        &self.error
    }

    /// What the peer is told.
    pub fn verdict(&self) -> Option<&H::Message> {
        self.send.as_ref()
    }
}

impl<H: Handshake> From<HandshakeError> for Reject<H> {
    fn from(error: HandshakeError) -> Self {
        Self { error, send: None }
    }
}

/// The lookup of a mechanism that looks nothing up: it can't have an outcome.
pub type NoLookup = Pending<Infallible>;

// Which variant it is, and nothing of what a message holds.

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
