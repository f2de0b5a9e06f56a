use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::exchange::{Initiator, hash_prologue};
use super::message::{Answer, Codec, Content, MAX_CLIENT_LEN, MAX_SERVER_LEN, Message};
use super::record::{FINISH, Opener, Sealer};
use super::stream::NoiseStream;
use super::symmetric::Hash;
use super::{Audience, OwnAudience, PreparedKey, Suite};
use crate::binding::Binding;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::{Key, KeyEntry, KeyError, KeyId, PrepareKey as _};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step, wiping_stack,
};

/// The client's side: proves that it holds its key, verifies that the server does, and encrypts the stream. Cheap to
/// clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    suite: Suite,
    binding: Binding,
    accept_unauthenticated_end: bool,
}

struct Shared {
    key_id: KeyId,
    key: PreparedKey,
    audience: Audience,
}

impl Client {
    /// Creates a client that holds `key` with the id `key_id` and connects to the service `audience`.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::UnsuitableKeyOfId`] for a key of less than 16 bytes, and [`KeyError::IdLength`] for an id
    /// that does not have 1 to 255 bytes.
    pub fn new(
        key_id: impl TryInto<KeyId, Error: Into<KeyError>>,
        key: &Key,
        audience: Audience,
    ) -> Result<Self, KeyError> {
        let key_id = key_id.try_into().map_err(Into::into)?;
        let key = PreparedKey::prepare(key).map_err(|error| error.with_id(&key_id))?;
        Ok(Self {
            shared: Arc::new(Shared { key_id, key, audience }),
            suite: Suite::Aes256Gcm,
            binding: Binding::default(),
            accept_unauthenticated_end: false,
        })
    }

    /// Creates a client with the id and the key of `entry`, as [`KeyFile`](crate::KeyFile) returns it, for the service
    /// `audience`, such as `"orders"`.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), and [`KeyError::AudienceLength`] for an audience of 0 or more than 255 bytes.
    pub fn from_entry<A>(
        entry: &KeyEntry<A>,
        audience: impl TryInto<Audience, Error: Into<KeyError>>,
    ) -> Result<Self, KeyError> {
        Self::new(entry.id().clone(), entry.key(), audience.try_into().map_err(Into::into)?)
    }

    /// Declares that this host is itself a server with the audience `own`, which it must not dial: see [`Audience`].
    ///
    /// # Errors
    ///
    /// Returns [`OwnAudience`] if this client dials `own`.
    pub fn serving_as(self, own: &Audience) -> Result<Self, OwnAudience> {
        OwnAudience::check(&self.shared.audience, own)?;
        Ok(self)
    }

    /// Sets the suite. Default: [`Suite::Aes256Gcm`]. The server must allow it.
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Requires a channel binding, see [`Server::require_channel_binding`](super::Server::require_channel_binding).
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Ignores a channel binding, see
    /// [`Server::dangerous_ignore_channel_binding`](super::Server::dangerous_ignore_channel_binding).
    #[must_use]
    pub fn dangerous_ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }

    /// Accepts the end of a stream without a CLOSE, see
    /// [`Server::dangerous_accept_unauthenticated_end`](super::Server::dangerous_accept_unauthenticated_end).
    #[must_use]
    pub fn dangerous_accept_unauthenticated_end(mut self) -> Self {
        self.accept_unauthenticated_end = true;
        self
    }
}

impl Mechanism for Client {
    type Role = mechanism::ClientRole;
    type Handshake = ClientHandshake;

    const NAME: &'static str = "noise";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ClientHandshake>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let Shared { key_id, key, audience } = &*self.shared;
        let prologue = hash_prologue(self.suite, key_id.as_bytes(), audience.as_bytes(), binding.as_ref());
        let (initiator, noise) = wiping_stack(|| {
            let mut seed = Zeroizing::new([0; 32]);
            cx.fill_random(&mut *seed)?;
            Initiator::start(self.suite, key, &prologue, &seed)
        })?;
        // nothing sent -> HELLO sent
        let hello = Content::Hello { suite: self.suite.number(), key_id: key_id.clone(), noise };
        let handshake = ClientHandshake {
            state: State::AwaitingAnswer(initiator),
            accept_unauthenticated_end: self.accept_unauthenticated_end,
        };
        Ok(Start { codec: Codec::new(), handshake, send: Some(Message(hello)) })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("key_id", &self.shared.key_id)
            .field("audience", &self.shared.audience)
            .field("suite", &self.suite)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

/// The client's state after HELLO.
pub struct ClientHandshake {
    state: State,
    accept_unauthenticated_end: bool,
}

enum State {
    AwaitingAnswer(Box<Initiator>),
    Done { sealer: Sealer, opener: Opener, hash: Hash },
    Over,
}

impl Handshake for ClientHandshake {
    type Codec = Codec;
    type Message = Message;
    type Peer = ServerPeer;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = NoiseStream<IO>;

    const MAX_RECV_LEN: usize = MAX_SERVER_LEN;
    const MAX_SEND_LEN: usize = MAX_CLIENT_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        let State::AwaitingAnswer(initiator) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(HandshakeError::malformed("unexpected message").into());
        };
        match frame.content().and_then(Answer::parse) {
            Some(Answer::Accepted { public, tag }) => {
                let Some(session) = initiator.finish(public, tag) else {
                    // Nothing is sent before message 2 has opened: otherwise forward secrecy would be lost.
                    return Err(HandshakeError::new(HandshakeErrorKind::ServerNotAuthenticated).into());
                };
                let (mut sealer, opener) = (Sealer::new(session.up), Opener::new(session.down));
                let finish = Content::Finish { sealed: sealer.seal_empty(FINISH) };
                self.state = State::Done { sealer, opener, hash: session.hash };
                // ANSWER received -> FINISH sent
                let peer = ServerPeer { hash: session.hash };
                Ok(Step::Complete { send: Some(Message(finish)), peer })
            }
            Some(Answer::Refused) => Err(HandshakeError::refused().into()),
            None => Err(HandshakeError::malformed("expected an answer").into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(
        self,
        io: IO,
        read_ahead: BytesMut,
    ) -> (NoiseStream<IO>, BytesMut) {
        let State::Done { sealer, opener, hash } = self.state else {
            unreachable!("only called after the handshake completed")
        };
        let accept_unauthenticated_end = self.accept_unauthenticated_end;
        let stream = NoiseStream::new(io, (sealer, opener), hash, &read_ahead, accept_unauthenticated_end);
        (stream, BytesMut::new())
    }
}

#[cfg(test)]
impl ClientHandshake {
    /// The session of an answer.
    pub(super) fn session_of(self, input: Input<Self>) -> super::exchange::Session {
        let Input::Frame(frame) = input;
        let Some(Answer::Accepted { public, tag }) = frame.content().and_then(Answer::parse) else {
            panic!("an answer")
        };
        let State::AwaitingAnswer(initiator) = self.state else { panic!("awaits an answer") };
        initiator.finish(public, tag).expect("it opens")
    }
}

impl fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandshake").finish_non_exhaustive()
    }
}

/// What a server has proven: that it holds the client's key and serves the client's audience. Cheap to clone.
///
/// That the server has accepted the client is proven by the first record that arrives from it.
#[derive(Clone, Debug)]
pub struct ServerPeer {
    hash: [u8; 32],
}

impl ServerPeer {
    /// Creates a peer without authentication, for unit tests. Requires the feature `test-util`.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub const fn without_handshake() -> Self {
        Self { hash: [0; 32] }
    }

    /// Returns the hash of the handshake: the same on both sides, and different for each session. It is not secret, and
    /// can bind another protocol to this session (Noise revision 34, section 11.2).
    #[must_use]
    pub const fn handshake_hash(&self) -> &[u8; 32] {
        &self.hash
    }
}
