use std::fmt;

use super::challenge::{Asked, Challenge, FAILURE, NONCE_LEN, WELCOME, parse_answer};
use super::codec::{Codec, LONGEST_RECEIVED, LONGEST_SENT, Received, Sent};
use super::digest::{Digest, Digests};
use super::key::{PreparedKey, Tag};
use crate::error::HandshakeError;
use crate::key::{FoundKeys, Identity, KeyId, KeyRing};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, first_match,
};

/// The server's side, a `multiprocessing.connection.Listener`: challenges, then answers.
pub struct Server<A = ()> {
    keys: KeyRing<PreparedKey, A>,
    digests: Digests,
    legacy_md5: bool,
}

impl<A> Server<A> {
    /// A server that accepts the keys of this ring. Python's `authkey` is the key as it is.
    #[must_use]
    pub fn new(keys: KeyRing<PreparedKey, A>) -> Self {
        Self { keys, digests: Digests::default(), legacy_md5: false }
    }

    /// Sets the digests with which a client's challenge is answered. Default: all but MD5.
    #[must_use]
    pub fn digests(mut self, digests: impl IntoIterator<Item = Digest>) -> Self {
        self.digests = digests.into_iter().collect();
        self
    }

    /// Accepts clients of CPython up to 3.11, which answer with a bare HMAC-MD5, and answers their challenges likewise.
    #[must_use]
    pub fn allow_legacy_md5(mut self) -> Self {
        self.legacy_md5 = true;
        self
    }
}

impl<A> Mechanism for Server<A> {
    type Role = mechanism::Server;
    type Handshake = Challenging<A>;

    const NAME: &'static str = "multiprocessing";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Challenging<A>>, HandshakeError> {
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        let challenge = Challenge::new(&nonce);
        // nothing sent -> challenge sent
        Ok(Start {
            codec: Codec::new(),
            send: Some(challenge.frame()),
            handshake: Challenging { server: self.clone(), state: State::Challenged(challenge) },
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
            .field("legacy_md5", &self.legacy_md5)
            .finish()
    }
}

/// The server's state: it awaits the answer to its challenge, then the client's challenge, then the client's verdict.
pub struct Challenging<A = ()> {
    server: Server<A>,
    state: State<A>,
}

enum State<A> {
    Challenged(Challenge),
    Welcomed { holder: Holder<A>, legacy: bool },
    Answered { peer: Identity<A> },
    Over,
}

/// The key that matched, of those that were looked through.
struct Holder<A> {
    keys: FoundKeys<PreparedKey, A>,
    place: usize,
}

impl<A> Handshake for Challenging<A> {
    type Codec = Codec;
    type Message = Sent;
    type Peer = Identity<A>;
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = LONGEST_RECEIVED;
    const LONGEST_SENT: usize = LONGEST_SENT;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Challenged(challenge) => self.judge(&challenge, &frame),
            State::Welcomed { holder, legacy } => self.answer(&holder, legacy, &frame),
            // verdict awaited -> accepted or refused
            State::Answered { peer } => match frame.as_bytes() {
                WELCOME => Ok(Step::Complete { send: None, peer }),
                FAILURE => Err(HandshakeError::refused().into()),
                _ => Err(HandshakeError::malformed("neither #WELCOME# nor #FAILURE#").into()),
            },
            State::Over => Err(HandshakeError::malformed("a message that nobody waits for").into()),
        }
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.key_id())
    }
}

impl<A> Challenging<A> {
    // answer received -> welcomed, client's challenge awaited; or refused
    fn judge(&mut self, challenge: &Challenge, frame: &Received) -> Result<Step<Self>, Reject<Self>> {
        let refused = || Reject::telling(HandshakeError::refused(), Sent::of(&[FAILURE]));
        let tag = parse_answer(frame, self.server.legacy_md5).ok_or_else(refused)?;
        let keys = self.server.keys.snapshot();
        let matches = keys.iter().map(|key| challenge.verify(key.key(), &tag));
        let place = first_match(matches).ok_or_else(refused)?;
        let holder = Holder { keys, place };
        self.state = State::Welcomed { holder, legacy: matches!(tag, Tag::LegacyMd5(_)) };
        Ok(Step::Continue { send: Some(Sent::of(&[WELCOME])) })
    }

    // client's challenge received -> answered, verdict awaited
    fn answer(
        &mut self,
        holder: &Holder<A>,
        legacy: bool,
        frame: &Received,
    ) -> Result<Step<Self>, Reject<Self>> {
        let asked = Asked::parse(frame, self.server.digests, legacy).map_err(HandshakeError::malformed)?;
        let key = &holder.keys.as_slice()[holder.place];
        self.state = State::Answered { peer: key.identity().clone() };
        Ok(Step::Continue { send: Some(asked.answer(key.key())) })
    }
}

impl<A> fmt::Debug for Challenging<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenging").finish_non_exhaustive()
    }
}
