use std::fmt;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::challenge::{Challenge, FAILURE, NONCE_LEN, PeerChallenge, WELCOME, parse_answer};
use super::codec::{Codec, MAX_RECV_LEN, MAX_SEND_LEN, Received, Sent};
use super::digest::{AllowedLegacy, Digest, Digests, Legacy};
use super::key::{MARK_LEN, PreparedKey};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::Key;
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, wiping_stack,
};

/// The client's side, as `multiprocessing.connection.Client`: answers the server's challenge, then challenges the
/// server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    key: PreparedKey,
    digests: Digests,
    legacy: AllowedLegacy,
}

impl Client {
    /// Creates a client that holds `key`. It has the same bytes as Python's `authkey`.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self { key: PreparedKey::new(key), digests: Digests::default(), legacy: AllowedLegacy::default() }
    }

    /// Sets the digests with which this client answers the server's challenge. Default: all except MD5.
    ///
    /// For servers of CPython up to 3.11 use [`allow_legacy_md5`](Self::allow_legacy_md5) or
    /// [`allow_legacy_sha256`](Self::allow_legacy_sha256) instead.
    #[must_use]
    pub fn digests(mut self, digests: impl IntoIterator<Item = Digest>) -> Self {
        self.digests = digests.into_iter().collect();
        self
    }

    /// Allows servers of CPython up to 3.11. Their challenge has 20 bytes. This client answers it with a bare HMAC-MD5,
    /// and then accepts a bare HMAC-MD5 from the server.
    #[must_use]
    pub fn allow_legacy_md5(mut self) -> Self {
        self.legacy.md5 = true;
        self
    }

    /// Allows servers of CPython up to 3.11 that are patched to use HMAC-SHA-256, as those of RHEL and its rebuilds.
    /// Their challenge has 20 bytes. This client answers it with a bare HMAC-SHA-256, and then accepts a bare
    /// HMAC-SHA-256 from the server.
    ///
    /// The challenge does not tell the two dialects apart. If [`allow_legacy_md5`](Self::allow_legacy_md5) is set too,
    /// **this client answers it with HMAC-SHA-256**, and servers that expect HMAC-MD5 refuse it. Use a client for each
    /// dialect if there are servers of both.
    #[must_use]
    pub fn allow_legacy_sha256(mut self) -> Self {
        self.legacy.sha256 = true;
        self
    }
}

impl Mechanism for Client {
    type Role = mechanism::ClientRole;
    type Handshake = ClientHandshake;

    const NAME: &'static str = "multiprocessing";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ClientHandshake>, HandshakeError> {
        let mut random = [0; NONCE_LEN - MARK_LEN];
        cx.fill_random(&mut random)?;
        let mut nonce = [0; NONCE_LEN];
        let (first_half, mark) = nonce.split_at_mut(random.len());
        first_half.copy_from_slice(&random);
        mark.copy_from_slice(&self.key.mark(&random));
        // nothing sent -> server's challenge awaited
        Ok(Start {
            codec: Codec::new(),
            handshake: ClientHandshake {
                client: self.clone(),
                state: State::AwaitingChallenge { challenge: Challenge::new(&nonce) },
            },
            send: None,
        })
    }
}

/// The client's state machine. It waits for the server's challenge, then for its verdict, then for its answer.
pub struct ClientHandshake {
    client: Client,
    state: State,
}

enum State {
    /// `challenge` is the one that this side will send.
    AwaitingChallenge {
        challenge: Challenge,
    },
    AwaitingVerdict {
        challenge: Challenge,
        legacy: Option<Legacy>,
    },
    AwaitingAnswer {
        challenge: Challenge,
        legacy: Option<Legacy>,
    },
    Done,
}

/// The authenticated server: it holds the key, or relays the messages of a party that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerPeer;

impl Handshake for ClientHandshake {
    type Codec = Codec;
    type Message = Sent;
    type Peer = ServerPeer;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = MAX_RECV_LEN;
    const MAX_SEND_LEN: usize = MAX_SEND_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Done) {
            State::AwaitingChallenge { challenge } => self.answer(challenge, &frame),
            State::AwaitingVerdict { challenge, legacy } => match frame.as_bytes() {
                // #WELCOME# received -> challenge sent, server's answer awaited
                WELCOME => {
                    let send = Some(challenge.frame());
                    self.state = State::AwaitingAnswer { challenge, legacy };
                    Ok(Step::Continue { send })
                }
                // #FAILURE# received -> refused
                FAILURE => Err(refused(legacy).into()),
                _ => Err(HandshakeError::malformed("expected #WELCOME# or #FAILURE#").into()),
            },
            State::AwaitingAnswer { challenge, legacy } => self.verify(&challenge, legacy, &frame),
            State::Done => Err(HandshakeError::malformed("received a message after the last one").into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

impl ClientHandshake {
    // server's challenge received -> answer sent, verdict awaited
    fn answer(&mut self, challenge: Challenge, frame: &Received) -> Result<Step<Self>, Reject<Self>> {
        let Client { key, digests, legacy } = &self.client;
        let peer_challenge = PeerChallenge::parse(frame, *digests, legacy.for_answer())?;
        if key.has_mark(peer_challenge.message()) {
            // The server forwards the challenge of another client, to get the answer that it cannot compute.
            let reflected = "its challenge was created by a client (reflection attack)";
            return Err(
                HandshakeError::with_cause(HandshakeErrorKind::ServerNotAuthenticated, reflected).into()
            );
        }
        let send = Some(peer_challenge.answer(key));
        self.state = State::AwaitingVerdict { challenge, legacy: peer_challenge.legacy() };
        Ok(Step::Continue { send })
    }

    // server's answer received -> #WELCOME# or #FAILURE# sent
    fn verify(
        &self,
        challenge: &Challenge,
        legacy: Option<Legacy>,
        frame: &Received,
    ) -> Result<Step<Self>, Reject<Self>> {
        // A legacy answer must be in the dialect that this side has answered in.
        let tag = parse_answer(frame).filter(|tag| tag.legacy().is_none() || tag.legacy() == legacy);
        match tag {
            Some(tag) if wiping_stack(|| challenge.is_answered(&self.client.key, &tag)) => {
                Ok(Step::Complete { send: Some(Sent::of(&[WELCOME])), peer: ServerPeer })
            }
            _ => {
                let error = HandshakeError::new(HandshakeErrorKind::ServerNotAuthenticated);
                Err(Reject::with_message(error, Sent::of(&[FAILURE])))
            }
        }
    }
}

/// Creates the error for a server that refused the answer of this side.
fn refused(legacy: Option<Legacy>) -> HandshakeError {
    let detail = match legacy {
        None => return HandshakeError::refused(),
        Some(Legacy::Md5) => {
            "this side answered with the HMAC-MD5 of Python 3.11 or older; \
             the key is wrong, or the server expects HMAC-SHA-256 (allow_legacy_sha256)"
        }
        Some(Legacy::Sha256) => {
            "this side answered with the HMAC-SHA-256 of the Python of RHEL; \
             the key is wrong, or the server expects HMAC-MD5 (allow_legacy_md5 alone)"
        }
    };
    HandshakeError::with_detail(HandshakeErrorKind::Refused, detail)
}

impl fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandshake").finish_non_exhaustive()
    }
}
