use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::cipher::TAG_LEN;
use super::exchange::{Answered, Responder, Seed, hash_prologue};
use super::message::{Codec, Content, Frame, Hello, MAX_CLIENT_LEN, MAX_SERVER_LEN, Message, PUBLIC_LEN};
use super::record::{FINISH, Opener, Sealer};
use super::stream::NoiseStream;
use super::suite::Suites;
use super::symmetric::Hash;
use super::{Audience, PreparedKey, Suite};
use crate::binding::Binding;
use crate::error::{ClaimedKeyId, HandshakeError, HandshakeErrorKind, RefusalReason};
use crate::key::{Identity, KeyId, KeySet, KeySource, PrepareKey as _, Revocation};
use crate::mechanism::{
    self, Context, Handshake, Input, Mechanism, Reject, Start, Step, first_match, wiping_stack,
};
use crate::transport::ChannelBinding;

/// The server's side: accepts clients that hold a key of `S`, proves that it holds it too, and encrypts the stream.
pub struct Server<S> {
    shared: Arc<Shared<S>>,
    suites: Suites,
    binding: Binding,
    accept_unauthenticated_end: bool,
}

struct Shared<S> {
    keys: S,
    audience: Audience,
    decoy: PreparedKey,
}

impl<S: KeySource<PreparedKey>> Server<S> {
    /// Creates a server of the service `audience` that looks up keys in `keys`: a [`KeyRing`](super::KeyRing), or any
    /// other [source](KeySource).
    pub fn new(keys: S, audience: Audience) -> Self {
        let shared = Arc::new(Shared { keys, audience, decoy: PreparedKey::decoy() });
        Self {
            shared,
            suites: Suites::default(),
            binding: Binding::default(),
            accept_unauthenticated_end: false,
        }
    }

    /// Sets the suites that clients may choose: at least one, or it does not compile. Default: all.
    #[must_use]
    pub fn suites<const N: usize>(mut self, suites: [Suite; N]) -> Self {
        const { assert!(N > 0, "a server without a suite refuses every client") };
        self.suites = suites.into_iter().collect();
        self
    }

    /// Requires that the stream has a channel binding. Otherwise the handshake fails with
    /// [`ChannelBinding`](HandshakeErrorKind::ChannelBinding) before anything is sent. The default is to use a channel
    /// binding if the stream has one.
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Ignores the channel binding of the stream: for TLS that ends at a proxy, where the two sides see different
    /// channels.
    #[must_use]
    pub fn dangerous_ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }

    /// Accepts the end of the transport between two records as the end of the stream, as if the peer had sent a CLOSE.
    ///
    /// **Anyone on the path can then cut the stream at such a place without being noticed.** This is for protocols that
    /// mark their own end, with peers that drop the stream without a shutdown.
    #[must_use]
    pub fn dangerous_accept_unauthenticated_end(mut self) -> Self {
        self.accept_unauthenticated_end = true;
        self
    }
}

impl<S: KeySource<PreparedKey>> Mechanism for Server<S> {
    type Role = mechanism::ServerRole;
    type Handshake = ServerHandshake<S>;

    const NAME: &'static str = "noise";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ServerHandshake<S>>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let mut seed = Box::new(Zeroizing::new([0; 32]));
        cx.fill_random(&mut **seed)?;
        // nothing received -> HELLO awaited
        let handshake =
            ServerHandshake { server: self.clone(), state: State::AwaitingHello { seed, binding } };
        Ok(Start { codec: Codec::new(), handshake, send: None })
    }
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ..*self }
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("audience", &self.shared.audience)
            .field("suites", &self.suites)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

/// The server's state: it awaits HELLO, then the keys of the id in it, then FINISH.
pub struct ServerHandshake<S: KeySource<PreparedKey>> {
    server: Server<S>,
    state: State<S::Metadata>,
}

enum State<A> {
    AwaitingHello {
        seed: Box<Seed>,
        binding: Option<ChannelBinding>,
    },
    LookingUp {
        seed: Box<Seed>,
        suite: Suite,
        prologue: Hash,
        public: [u8; PUBLIC_LEN],
        tag: [u8; TAG_LEN],
        claimed: ClaimedKeyId,
    },
    AwaitingFinish {
        answered: Answered,
        peer: Peer<A>,
    },
    Done {
        sealer: Sealer,
        opener: Opener,
        hash: Hash,
    },
    Over,
}

impl<S: KeySource<PreparedKey>> Handshake for ServerHandshake<S> {
    type Codec = Codec;
    type Message = Message;
    type Peer = Peer<S::Metadata>;
    type Lookup = S::Lookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = NoiseStream<IO>;

    const MAX_RECV_LEN: usize = MAX_CLIENT_LEN;
    const MAX_SEND_LEN: usize = MAX_SERVER_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        match (std::mem::replace(&mut self.state, State::Over), input) {
            (State::AwaitingHello { seed, binding }, Input::Frame(frame)) => {
                self.look_up(seed, binding.as_ref(), &frame)
            }
            (State::LookingUp { seed, suite, prologue, public, tag, claimed }, Input::Found(found)) => {
                let keys = found
                    .map_err(|error| HandshakeError::with_cause(HandshakeErrorKind::KeySource, error))?;
                let hello = Opened { suite, prologue: &prologue, public: &public, tag: &tag };
                self.answer(&hello, &seed, claimed, &keys)
            }
            (State::AwaitingFinish { answered, peer }, Input::Frame(frame)) => {
                self.finish(answered, peer, frame)
            }
            _ => Err(HandshakeError::malformed("unexpected message").into()),
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
        let accept_unauthenticated_end = self.server.accept_unauthenticated_end;
        let stream = NoiseStream::new(io, (sealer, opener), hash, &read_ahead, accept_unauthenticated_end);
        (stream, BytesMut::new())
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.identity().key_id())
    }

    fn revocation(peer: &Self::Peer) -> Option<&Revocation> {
        peer.identity().revocation()
    }
}

/// A HELLO whose key is searched.
struct Opened<'a> {
    suite: Suite,
    prologue: &'a Hash,
    public: &'a [u8; PUBLIC_LEN],
    tag: &'a [u8; TAG_LEN],
}

impl<S: KeySource<PreparedKey>> ServerHandshake<S> {
    // HELLO received -> keys looked up
    fn look_up(
        &mut self,
        seed: Box<Seed>,
        binding: Option<&ChannelBinding>,
        frame: &Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let malformed = || refused(RefusalReason::MalformedProof, None);
        let hello = frame.content().and_then(Hello::parse).ok_or_else(malformed)?;
        let claimed = ClaimedKeyId::new(hello.key_id);
        let suite = Suite::from_number(hello.suite)
            .filter(|suite| self.server.suites.contains(*suite))
            .ok_or_else(|| refused(RefusalReason::SuiteNotAllowed, Some(claimed)))?;
        let audience = self.server.shared.audience.as_bytes();
        self.state = State::LookingUp {
            seed,
            suite,
            prologue: hash_prologue(suite, hello.key_id, audience, binding),
            public: *hello.public,
            tag: *hello.tag,
            claimed,
        };
        Ok(Step::LookUp(self.server.shared.keys.look_up(hello.key_id)))
    }

    // keys found -> ANSWER sent, FINISH awaited; or refused
    fn answer(
        &mut self,
        hello: &Opened<'_>,
        seed: &Seed,
        claimed: ClaimedKeyId,
        keys: &KeySet<PreparedKey, S::Metadata>,
    ) -> Result<Step<Self>, Reject<Self>> {
        let Opened { suite, prologue, public, tag } = *hello;
        // The same number of keys is tried for every id, known or not. Matches with keys of another id do not count.
        let decoy = &self.server.shared.decoy;
        let answered = wiping_stack(|| {
            let mut to_try = keys.keys_to_try();
            let mut opened = [const { None }; PreparedKey::MAX_KEYS_PER_ID];
            for place in &mut opened {
                *place = Responder::open(suite, to_try.next().unwrap_or(decoy), prologue, public, tag);
            }
            let place = first_match(opened.iter().map(Option::is_some))?;
            let holder = keys.as_slice().get(place)?;
            Some((holder, opened[place].take()?.answer(public, seed)))
        });
        let Some((holder, answer)) = answered else {
            let is_known = !keys.as_slice().is_empty();
            let reason = if is_known { RefusalReason::ProofMismatch } else { RefusalReason::UnknownKeyId };
            return Err(refused(reason, Some(claimed)));
        };
        let Some((answered, noise)) = answer? else {
            return Err(refused(RefusalReason::MalformedProof, Some(claimed)));
        };
        let peer = Peer { identity: holder.identity().clone(), hash: answered.hash() };
        self.state = State::AwaitingFinish { answered, peer };
        Ok(Step::Continue { send: Some(Message(Content::Answer { noise })) })
    }

    // FINISH received -> accepted
    fn finish(
        &mut self,
        answered: Answered,
        peer: Peer<S::Metadata>,
        mut frame: Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let session = answered.into_session();
        let (sealer, mut opener) = (Sealer::new(session.down), Opener::new(session.up));
        let finished = frame.content_mut().is_some_and(|sealed| opener.open_empty(FINISH, sealed));
        if !finished {
            // HELLO may have been a replay: only FINISH proves that the client holds the key now.
            let id = ClaimedKeyId::new(peer.identity().key_id().as_bytes());
            let error = HandshakeError::refused_because(RefusalReason::NoFinish).with_claimed_key_id(id);
            return Err(error.into());
        }
        self.state = State::Done { sealer, opener, hash: peer.hash };
        Ok(Step::Complete { send: None, peer })
    }
}

/// Every refusal sends the same message. The reason is for the server's log.
fn refused<H: Handshake<Message = Message>>(
    reason: RefusalReason,
    claimed: Option<ClaimedKeyId>,
) -> Reject<H> {
    let error = HandshakeError::refused_because(reason);
    let error = match claimed {
        Some(id) => error.with_claimed_key_id(id),
        None => error,
    };
    Reject::with_message(error, Message(Content::Refused))
}

impl<S: KeySource<PreparedKey>> fmt::Debug for ServerHandshake<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandshake").finish_non_exhaustive()
    }
}

/// What a client has proven: whose key it holds. Cheap to clone.
pub struct Peer<A = ()> {
    identity: Identity<A>,
    hash: [u8; 32],
}

impl<A> Peer<A> {
    /// Returns the identity of the key's holder.
    #[must_use]
    pub const fn identity(&self) -> &Identity<A> {
        &self.identity
    }

    /// Returns the hash of the handshake, see [`ServerPeer::handshake_hash`](super::ServerPeer::handshake_hash).
    #[must_use]
    pub const fn handshake_hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Creates a peer without authentication, for unit tests of handlers. Requires the feature `test-util`. For its stream
    /// see [`NoiseStream::pair_without_handshake`].
    #[cfg(feature = "test-util")]
    #[must_use]
    pub const fn without_handshake(identity: Identity<A>) -> Self {
        Self { identity, hash: [0; 32] }
    }
}

impl<A> Clone for Peer<A> {
    fn clone(&self) -> Self {
        Self { identity: self.identity.clone(), hash: self.hash }
    }
}

impl<A: fmt::Debug> fmt::Debug for Peer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("identity", &self.identity).finish_non_exhaustive()
    }
}
