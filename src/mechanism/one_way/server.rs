use std::fmt;

use md5::Md5;

use super::codec::ServerCodec;
use super::message::{Nonce, ServerMessage};
use super::{Digest, PreparedKey, Wire};
use crate::error::HandshakeError;
use crate::key::{Identity, KeyId, KeyRing};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, first_match,
};

/// The server's side: challenges, and accepts whoever holds a key of its ring.
pub struct Server<D: Digest = Md5, A = ()> {
    keys: KeyRing<PreparedKey<D>, A>,
    wire: Wire,
}

impl<A> Server<Md5, A> {
    /// The classic wire, with these keys.
    #[must_use]
    pub fn new(keys: KeyRing<PreparedKey, A>) -> Self {
        Self::with_digest(keys)
    }
}

impl<D: Digest, A> Server<D, A> {
    /// The same with another digest, which both sides must agree on: `Server::<Sha256>::with_digest(keys)` expects
    /// answers of 32 bytes.
    #[must_use]
    pub fn with_digest(keys: KeyRing<PreparedKey<D>, A>) -> Self {
        Self { keys, wire: Wire::CLASSIC }
    }

    /// Sets the nonce's length and the verdicts. Default: [`Wire::CLASSIC`].
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }
}

impl<D: Digest, A> Mechanism for Server<D, A> {
    type Role = mechanism::Server;
    type Handshake = Challenging<D, A>;

    const NAME: &'static str = "one_way";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Challenging<D, A>>, HandshakeError> {
        let mut nonce = self.wire.zeroed_nonce();
        cx.fill_random(nonce.as_bytes_mut())?;
        // nothing sent -> challenge sent
        Ok(Start {
            codec: ServerCodec::new(self.wire.clone()),
            send: Some(ServerMessage::Challenge(nonce.clone())),
            handshake: Challenging { nonce, keys: self.keys.clone() },
        })
    }
}

impl<D: Digest, A> Clone for Server<D, A> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), wire: self.wire.clone() }
    }
}

impl<D: Digest, A> fmt::Debug for Server<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("keys", &self.keys).field("wire", &self.wire).finish()
    }
}

/// The server's state once the challenge has been sent: it awaits the answer.
pub struct Challenging<D: Digest = Md5, A = ()> {
    nonce: Nonce,
    keys: KeyRing<PreparedKey<D>, A>,
}

impl<D: Digest, A> Handshake for Challenging<D, A> {
    type Codec = ServerCodec<D>;
    type Message = ServerMessage;
    type Peer = Identity<A>;
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = super::wire::LONGEST_MESSAGE;
    const LONGEST_SENT: usize = super::wire::LONGEST_MESSAGE;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(answer) = input;
        let keys = self.keys.snapshot();
        let matches = keys.iter().map(|key| key.key().verify(&self.nonce, &answer));
        let holder = first_match(matches).map(|place| keys.as_slice()[place].identity().clone());
        match holder {
            // answer received -> accepted
            Some(peer) => Ok(Step::Complete { send: Some(ServerMessage::Accepted), peer }),
            // answer received -> refused
            None => Err(Reject::telling(HandshakeError::refused(), ServerMessage::Refused)),
        }
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.key_id())
    }
}

impl<D: Digest, A> fmt::Debug for Challenging<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenging").field("keys", &self.keys).finish_non_exhaustive()
    }
}
