use std::fmt;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::challenge::{Challenge, FAILURE, NONCE_LEN, PeerChallenge, WELCOME, parse_answer};
use super::codec::{Codec, MAX_RECV_LEN, MAX_SEND_LEN, Received, Sent};
use super::digest::{AllowedLegacy, Digest, Digests, Legacy};
use super::key::PreparedKey;
use crate::error::{HandshakeError, RefusalReason};
use crate::key::{Identity, KeyId, KeyRing, KeySet, Revocation};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, first_match, wiping_stack,
};

/// The server's side, as `multiprocessing.connection.Listener`: challenges the client, then answers the client's
/// challenge.
pub struct Server<A = ()> {
    keys: KeyRing<PreparedKey, A>,
    digests: Digests,
    legacy: AllowedLegacy,
}

impl<A> Server<A> {
    /// Creates a server that accepts the keys of this ring. A key has the same bytes as Python's `authkey`.
    #[must_use]
    pub fn new(keys: KeyRing<PreparedKey, A>) -> Self {
        Self { keys, digests: Digests::default(), legacy: AllowedLegacy::default() }
    }

    /// Sets the digests with which this server answers the client's challenge. Default: all except MD5.
    ///
    /// For clients of CPython up to 3.11 use [`allow_legacy_md5`](Self::allow_legacy_md5) or
    /// [`allow_legacy_sha256`](Self::allow_legacy_sha256) instead.
    #[must_use]
    pub fn digests(mut self, digests: impl IntoIterator<Item = Digest>) -> Self {
        self.digests = digests.into_iter().collect();
        self
    }

    /// Allows clients of CPython up to 3.11. Their answer is a bare HMAC-MD5. This server accepts it, and then
    /// answers the client's challenge of 20 bytes with a bare HMAC-MD5 as well.
    #[must_use]
    pub fn allow_legacy_md5(mut self) -> Self {
        self.legacy.md5 = true;
        self
    }

    /// Allows clients of CPython up to 3.11 that are patched to use HMAC-SHA-256, as those of RHEL and its rebuilds.
    /// Their answer is a bare HMAC-SHA-256. This server accepts it, and then answers the client's challenge of 20 bytes
    /// with a bare HMAC-SHA-256 as well.
    ///
    /// Can be combined with [`allow_legacy_md5`](Self::allow_legacy_md5): the length of the client's answer tells the
    /// dialect.
    #[must_use]
    pub fn allow_legacy_sha256(mut self) -> Self {
        self.legacy.sha256 = true;
        self
    }
}

impl<A> Mechanism for Server<A> {
    type Role = mechanism::ServerRole;
    type Handshake = ServerHandshake<A>;

    const NAME: &'static str = "multiprocessing";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ServerHandshake<A>>, HandshakeError> {
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        let challenge = Challenge::new(&nonce);
        // nothing sent -> challenge sent, answer awaited
        Ok(Start {
            codec: Codec::new(),
            send: Some(challenge.frame()),
            handshake: ServerHandshake { server: self.clone(), state: State::AwaitingAnswer(challenge) },
        })
    }
}

impl<A> Clone for Server<A> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), ..*self }
    }
}

impl<A> fmt::Debug for Server<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("keys", &self.keys)
            .field("digests", &self.digests)
            .field("legacy", &self.legacy)
            .finish()
    }
}

/// The server's state machine. It waits for the answer to its challenge, then for the client's challenge, then for the
/// client's verdict.
pub struct ServerHandshake<A = ()> {
    server: Server<A>,
    state: State<A>,
}

enum State<A> {
    AwaitingAnswer(Challenge),
    AwaitingChallenge { client_key: ClientKey<A>, legacy: Option<Legacy> },
    AwaitingVerdict { peer: Identity<A> },
    Done,
}

/// The key that matched the client's answer.
struct ClientKey<A> {
    keys: KeySet<PreparedKey, A>,
    position: usize,
}

impl<A> Handshake for ServerHandshake<A> {
    type Codec = Codec;
    type Message = Sent;
    type Peer = Identity<A>;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = MAX_RECV_LEN;
    const MAX_SEND_LEN: usize = MAX_SEND_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Done) {
            State::AwaitingAnswer(challenge) => self.verify(&challenge, &frame),
            State::AwaitingChallenge { client_key, legacy } => self.answer(&client_key, legacy, &frame),
            // verdict received -> accepted or refused
            State::AwaitingVerdict { peer } => match frame.as_bytes() {
                WELCOME => Ok(Step::Complete { send: None, peer }),
                FAILURE => Err(HandshakeError::refused().into()),
                _ => Err(HandshakeError::malformed("expected #WELCOME# or #FAILURE#").into()),
            },
            State::Done => Err(HandshakeError::malformed("received a message after the last one").into()),
        }
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

impl<A> ServerHandshake<A> {
    // answer received -> #WELCOME# sent, client's challenge awaited; or #FAILURE# sent
    fn verify(&mut self, challenge: &Challenge, frame: &Received) -> Result<Step<Self>, Reject<Self>> {
        let refused =
            |reason| Reject::with_message(HandshakeError::refused_because(reason), Sent::of(&[FAILURE]));
        let tag = parse_answer(frame).ok_or_else(|| refused(RefusalReason::MalformedProof))?;
        let legacy = tag.legacy();
        match legacy {
            Some(Legacy::Md5) if !self.server.legacy.md5 => return Err(refused(RefusalReason::LegacyMd5)),
            Some(Legacy::Sha256) if !self.server.legacy.sha256 => {
                return Err(refused(RefusalReason::LegacySha256));
            }
            _ => {}
        }
        let keys = self.server.keys.snapshot();
        let matches = keys.iter().map(|key| challenge.is_answered(key.key(), &tag));
        let position = wiping_stack(|| first_match(matches));
        let position = position.ok_or_else(|| refused(RefusalReason::NoMatchingKey))?;
        let client_key = ClientKey { keys, position };
        self.state = State::AwaitingChallenge { client_key, legacy };
        Ok(Step::Continue { send: Some(Sent::of(&[WELCOME])) })
    }

    // client's challenge received -> answer sent, verdict awaited
    fn answer(
        &mut self,
        client_key: &ClientKey<A>,
        legacy: Option<Legacy>,
        frame: &Received,
    ) -> Result<Step<Self>, Reject<Self>> {
        // A legacy challenge is answered in the dialect of the client's own answer.
        let peer_challenge = PeerChallenge::parse(frame, self.server.digests, legacy)?;
        let key = &client_key.keys.as_slice()[client_key.position];
        self.state = State::AwaitingVerdict { peer: key.identity().clone() };
        Ok(Step::Continue { send: Some(peer_challenge.answer(key.key())) })
    }
}

impl<A> fmt::Debug for ServerHandshake<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandshake").finish_non_exhaustive()
    }
}
