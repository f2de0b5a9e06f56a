use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use md5::Md5;

use super::codec::ClientCodec;
use super::message::{Answer, ServerMessage};
use super::{HmacDigest, PreparedKey, Wire};
use crate::error::HandshakeError;
use crate::key::Key;
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step};

/// The client's side: answers the server's challenge with its key. Cheap to clone.
pub struct Client<D: HmacDigest = Md5> {
    key: Arc<PreparedKey<D>>,
    wire: Wire,
}

impl Client<Md5> {
    /// Creates a client for the classic wire, with HMAC-MD5.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self::with_digest(key)
    }
}

impl<D: HmacDigest> Client<D> {
    /// Creates a client with another digest, e.g. `Client::<Sha256>::with_digest(&key)`. Both sides must use the same
    /// digest.
    #[must_use]
    pub fn with_digest(key: &Key) -> Self {
        Self { key: Arc::new(PreparedKey::new(key)), wire: Wire::CLASSIC }
    }

    /// Sets the length of the nonce and the verdicts. Default: [`Wire::CLASSIC`]. Both sides must use the same wire.
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }
}

impl<D: HmacDigest> Mechanism for Client<D> {
    type Role = mechanism::ClientRole;
    type Handshake = ClientHandshake<D>;

    const NAME: &'static str = "one_way";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<ClientHandshake<D>>, HandshakeError> {
        // nothing sent -> challenge awaited
        Ok(Start {
            codec: ClientCodec::new(self.wire.clone()),
            handshake: ClientHandshake {
                key: Arc::clone(&self.key),
                answered: false,
                awaits_verdict: self.wire.has_verdict(),
            },
            send: None,
        })
    }
}

impl<D: HmacDigest> Clone for Client<D> {
    fn clone(&self) -> Self {
        Self { key: Arc::clone(&self.key), wire: self.wire.clone() }
    }
}

impl<D: HmacDigest> fmt::Debug for Client<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("wire", &self.wire).finish_non_exhaustive()
    }
}

/// The client's state machine. It waits for the challenge, then for the verdict, if the wire has one.
pub struct ClientHandshake<D: HmacDigest = Md5> {
    key: Arc<PreparedKey<D>>,
    answered: bool,
    awaits_verdict: bool,
}

/// The server, as the client knows it after this handshake: unauthenticated. Any server can accept the client, and on a
/// wire [without a verdict](Wire::without_verdict) the client does not even know whether it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerPeer;

impl<D: HmacDigest> Handshake for ClientHandshake<D> {
    type Codec = ClientCodec<D>;
    type Message = Answer<D>;
    type Peer = ServerPeer;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = super::wire::MAX_MESSAGE_LEN;
    const MAX_SEND_LEN: usize = super::wire::MAX_MESSAGE_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(message) = input;
        match (message, self.answered) {
            (ServerMessage::Challenge(nonce), false) => {
                self.answered = true;
                let send = Some(Answer(self.key.sign(nonce.as_bytes())));
                Ok(if self.awaits_verdict {
                    // challenge received -> answer sent, verdict awaited
                    Step::Continue { send }
                } else {
                    // challenge received -> answer sent, complete
                    Step::Complete { send, peer: ServerPeer }
                })
            }
            // verdict received -> accepted
            (ServerMessage::Accepted, true) => Ok(Step::Complete { send: None, peer: ServerPeer }),
            // verdict received -> refused
            (ServerMessage::Refused, true) => Err(HandshakeError::refused().into()),
            (ServerMessage::Challenge(_), true) => {
                Err(HandshakeError::malformed("expected a verdict, received a challenge").into())
            }
            (ServerMessage::Accepted | ServerMessage::Refused, false) => {
                Err(HandshakeError::malformed("expected a challenge, received a verdict").into())
            }
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

impl<D: HmacDigest> fmt::Debug for ClientHandshake<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandshake").finish_non_exhaustive()
    }
}
