use std::fmt;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use md5::Md5;

use super::codec::ServerCodec;
use super::message::{Nonce, ServerMessage};
use super::{HmacDigest, PreparedKey, Wire};
use crate::error::{HandshakeError, RefusalReason};
use crate::key::{Identity, KeyId, KeyRing, Revocation};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, first_match, wiping_stack,
};

/// The server's side: sends the challenge, and accepts a client that holds a key of its ring.
pub struct Server<D: HmacDigest = Md5, A = ()> {
    keys: KeyRing<PreparedKey<D>, A>,
    wire: Wire,
}

impl<A> Server<Md5, A> {
    /// Creates a server for the classic wire, with HMAC-MD5.
    #[must_use]
    pub fn new(keys: KeyRing<PreparedKey, A>) -> Self {
        Self::with_digest(keys)
    }
}

impl<D: HmacDigest, A> Server<D, A> {
    /// Creates a server with another digest. Both sides must use the same digest: `Server::<Sha256>::with_digest(keys)`
    /// expects answers of 32 bytes.
    #[must_use]
    pub fn with_digest(keys: KeyRing<PreparedKey<D>, A>) -> Self {
        Self { keys, wire: Wire::CLASSIC }
    }

    /// Sets the length of the nonce and the verdicts. Default: [`Wire::CLASSIC`]. Both sides must use the same wire.
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }
}

impl<D: HmacDigest, A> Mechanism for Server<D, A> {
    type Role = mechanism::ServerRole;
    type Handshake = ServerHandshake<D, A>;

    const NAME: &'static str = "one_way";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ServerHandshake<D, A>>, HandshakeError> {
        let mut nonce = self.wire.zeroed_nonce();
        cx.fill_random(nonce.as_bytes_mut())?;
        // nothing sent -> challenge sent, answer awaited
        Ok(Start {
            codec: ServerCodec::new(self.wire.clone()),
            send: Some(ServerMessage::Challenge(nonce.clone())),
            handshake: ServerHandshake {
                nonce,
                keys: self.keys.clone(),
                sends_verdict: self.wire.has_verdict(),
            },
        })
    }
}

impl<D: HmacDigest, A> Clone for Server<D, A> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), wire: self.wire.clone() }
    }
}

impl<D: HmacDigest, A> fmt::Debug for Server<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("keys", &self.keys).field("wire", &self.wire).finish()
    }
}

/// The server's state machine. It waits for the answer to its challenge.
pub struct ServerHandshake<D: HmacDigest = Md5, A = ()> {
    nonce: Nonce,
    keys: KeyRing<PreparedKey<D>, A>,
    sends_verdict: bool,
}

impl<D: HmacDigest, A> Handshake for ServerHandshake<D, A> {
    type Codec = ServerCodec<D>;
    type Message = ServerMessage;
    type Peer = Identity<A>;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = super::wire::MAX_MESSAGE_LEN;
    const MAX_SEND_LEN: usize = super::wire::MAX_MESSAGE_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(answer) = input;
        let keys = self.keys.snapshot();
        let (nonce, answer) = (self.nonce.as_bytes(), answer.as_bytes());
        let matches = keys.iter().map(|key| key.key().is_valid(nonce, answer));
        let matching = wiping_stack(|| {
            let position = first_match(matches)?;
            // Cloned here: directly after the stack is overwritten, loads take a time that depends on their address.
            Some(keys.as_slice()[position].identity().clone())
        });
        let peer = matching.ok_or_else(|| {
            // answer received -> refused
            let error = HandshakeError::refused_because(RefusalReason::NoMatchingKey);
            if self.sends_verdict {
                Reject::with_message(error, ServerMessage::Refused)
            } else {
                error.into()
            }
        })?;
        // answer received -> accepted
        Ok(Step::Complete { send: self.sends_verdict.then_some(ServerMessage::Accepted), peer })
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.key_id())
    }

    fn revocation(peer: &Self::Peer) -> Option<&Revocation> {
        peer.revocation()
    }
}

impl<D: HmacDigest, A> fmt::Debug for ServerHandshake<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandshake").field("keys", &self.keys).finish_non_exhaustive()
    }
}
