use std::fmt;
use std::sync::Arc;

use super::challenge::{Asked, Challenge, FAILURE, NONCE_LEN, WELCOME, parse_answer};
use super::codec::{Codec, LONGEST_RECEIVED, LONGEST_SENT, Received, Sent};
use super::digest::{Digest, Digests};
use super::key::{MARK_LEN, PreparedKey};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::Key;
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step};

/// The client's side, a `multiprocessing.connection.Client`: answers, then challenges. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    key: Arc<PreparedKey>,
    digests: Digests,
    legacy_md5: bool,
}

impl Client {
    /// A client that holds this key. Python's `authkey` is the key as it is.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self { key: Arc::new(PreparedKey::new(key)), digests: Digests::default(), legacy_md5: false }
    }

    /// Sets the digests with which a server's challenge is answered. Default: all but MD5.
    #[must_use]
    pub fn digests(mut self, digests: impl IntoIterator<Item = Digest>) -> Self {
        self.digests = digests.into_iter().collect();
        self
    }

    /// Answers servers of CPython up to 3.11, whose challenge has 20 bytes, with a bare HMAC-MD5, and accepts the same
    /// from them.
    #[must_use]
    pub fn allow_legacy_md5(mut self) -> Self {
        self.legacy_md5 = true;
        self
    }
}

impl Mechanism for Client {
    type Role = mechanism::Client;
    type Handshake = Answering;

    const NAME: &'static str = "multiprocessing";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Answering>, HandshakeError> {
        let mut random = [0; NONCE_LEN - MARK_LEN];
        cx.fill_random(&mut random)?;
        let mut nonce = [0; NONCE_LEN];
        let (first, second) = nonce.split_at_mut(random.len());
        first.copy_from_slice(&random);
        second.copy_from_slice(&self.key.mark(&random));
        // nothing received -> challenge awaited
        Ok(Start {
            codec: Codec::new(),
            handshake: Answering { client: self.clone(), state: State::Begun(Challenge::new(&nonce)) },
            send: None,
        })
    }
}

/// The client's state: it awaits the server's challenge, then its verdict, then its answer.
pub struct Answering {
    client: Client,
    state: State,
}

enum State {
    Begun(Challenge),
    Answered { challenge: Challenge, legacy: bool },
    Challenged { challenge: Challenge, legacy: bool },
    Over,
}

/// What the server has proven: that it holds the key, or relays to somebody who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProvenServer;

impl Handshake for Answering {
    type Codec = Codec;
    type Message = Sent;
    type Peer = ProvenServer;
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = LONGEST_RECEIVED;
    const LONGEST_SENT: usize = LONGEST_SENT;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Begun(challenge) => self.answer(challenge, &frame),
            State::Answered { challenge, legacy } => match frame.as_bytes() {
                // welcomed -> challenge sent, answer awaited
                WELCOME => {
                    let send = Some(challenge.frame());
                    self.state = State::Challenged { challenge, legacy };
                    Ok(Step::Continue { send })
                }
                FAILURE => Err(HandshakeError::refused().into()),
                _ => Err(HandshakeError::malformed("neither #WELCOME# nor #FAILURE#").into()),
            },
            State::Challenged { challenge, legacy } => self.judge(&challenge, legacy, &frame),
            State::Over => Err(HandshakeError::malformed("a message that nobody waits for").into()),
        }
    }
}

impl Answering {
    // server's challenge received -> answered, verdict awaited
    fn answer(&mut self, challenge: Challenge, frame: &Received) -> Result<Step<Self>, Reject<Self>> {
        let Client { key, digests, legacy_md5 } = &self.client;
        let asked = Asked::parse(frame, *digests, *legacy_md5).map_err(HandshakeError::malformed)?;
        if key.bears_mark(asked.message()) {
            // Somebody without the key is after the answer that a client of ours has asked for.
            let reflected = "a challenge of this side's own came back";
            return Err(HandshakeError::with_source(HandshakeErrorKind::ServerUnproven, reflected).into());
        }
        let send = Some(asked.answer(key));
        self.state = State::Answered { challenge, legacy: asked.is_legacy() };
        Ok(Step::Continue { send })
    }

    // answer received -> welcomed or refused
    fn judge(
        &self,
        challenge: &Challenge,
        legacy: bool,
        frame: &Received,
    ) -> Result<Step<Self>, Reject<Self>> {
        match parse_answer(frame, legacy) {
            Some(tag) if challenge.verify(&self.client.key, &tag) => {
                Ok(Step::Complete { send: Some(Sent::of(&[WELCOME])), peer: ProvenServer })
            }
            _ => {
                let error = HandshakeError::new(HandshakeErrorKind::ServerUnproven);
                Err(Reject::telling(error, Sent::of(&[FAILURE])))
            }
        }
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}
