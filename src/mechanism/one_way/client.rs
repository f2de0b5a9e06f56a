use std::fmt;
use std::sync::Arc;

use md5::Md5;

use super::codec::ClientCodec;
use super::message::{Answer, ServerMessage};
use super::{Digest, PreparedKey, Wire};
use crate::error::HandshakeError;
use crate::key::Key;
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step};

/// The client's side: answers a server's challenge with its key. Cheap to clone.
pub struct Client<D: Digest = Md5> {
    key: Arc<PreparedKey<D>>,
    wire: Wire,
}

impl Client<Md5> {
    /// The classic wire, with this key.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self::with_digest(key)
    }
}

impl<D: Digest> Client<D> {
    /// The same with another digest, which both sides must agree on.
    #[must_use]
    pub fn with_digest(key: &Key) -> Self {
        Self { key: Arc::new(PreparedKey::new(key)), wire: Wire::CLASSIC }
    }

    /// Sets the nonce's length and the verdicts. Default: [`Wire::CLASSIC`].
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }
}

impl<D: Digest> Mechanism for Client<D> {
    type Role = mechanism::Client;
    type Handshake = Answering<D>;

    const NAME: &'static str = "one_way";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<Answering<D>>, HandshakeError> {
        // nothing received -> challenge awaited
        Ok(Start {
            codec: ClientCodec::new(self.wire.clone()),
            handshake: Answering { key: Arc::clone(&self.key), answered: false },
            send: None,
        })
    }
}

impl<D: Digest> Clone for Client<D> {
    fn clone(&self) -> Self {
        Self { key: Arc::clone(&self.key), wire: self.wire.clone() }
    }
}

impl<D: Digest> fmt::Debug for Client<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("wire", &self.wire).finish_non_exhaustive()
    }
}

/// The client's state: it awaits the challenge, then the verdict.
pub struct Answering<D: Digest = Md5> {
    key: Arc<PreparedKey<D>>,
    answered: bool,
}

/// What the client knows of the server after this handshake: that it said yes. Anybody can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnprovenServer;

impl<D: Digest> Handshake for Answering<D> {
    type Codec = ClientCodec<D>;
    type Message = Answer<D>;
    type Peer = UnprovenServer;
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = super::wire::LONGEST_MESSAGE;
    const LONGEST_SENT: usize = super::wire::LONGEST_MESSAGE;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(message) = input;
        match (message, self.answered) {
            // challenge awaited -> answer sent, verdict awaited
            (ServerMessage::Challenge(nonce), false) => {
                self.answered = true;
                Ok(Step::Continue { send: Some(self.key.answer(&nonce)) })
            }
            // verdict awaited -> accepted
            (ServerMessage::Accepted, true) => Ok(Step::Complete { send: None, peer: UnprovenServer }),
            // verdict awaited -> refused
            (ServerMessage::Refused, true) => Err(HandshakeError::refused().into()),
            (ServerMessage::Challenge(_), true) => {
                Err(HandshakeError::malformed("a second challenge").into())
            }
            (ServerMessage::Accepted | ServerMessage::Refused, false) => {
                Err(HandshakeError::malformed("a verdict before the challenge").into())
            }
        }
    }
}

impl<D: Digest> fmt::Debug for Answering<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}
