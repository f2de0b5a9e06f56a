use std::fmt;

use bytes::BytesMut;
use std::hint::black_box;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::{Codec, Frame, MAX_PROOF_LEN, MAX_SERVER_MESSAGE_LEN};
use super::encode::{NONCE_LEN, Nonce, Tag};
use super::exporter::Exporter;
use super::message::{Content, Message, Proof};
use super::schedule::Transcript;
use super::{Audience, ExportError, PreparedKey};
use crate::binding::Binding;
use crate::error::{BoxError, ClaimedKeyId, HandshakeError, HandshakeErrorKind, RefusalReason};
use crate::key::{Identity, KeyError, KeyId, KeySet, KeySource, PrepareKey as _, Revocation};
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, Reject, Start, Step};
use crate::transport::ChannelBinding;

/// The server's side: sends the challenge, accepts a client that holds a key of the source `S`, and proves that it
/// holds the same key. Cheap to clone.
pub struct Server<S> {
    shared: Arc<Shared<S>>,
    binding: Binding,
}

struct Shared<S> {
    keys: S,
    audience: Audience,
    decoy: PreparedKey,
}

impl<S: KeySource<PreparedKey>> Server<S> {
    /// Creates a server with the name `audience` that looks up keys in `keys`: a [`KeyRing`](super::KeyRing) or any
    /// other [`KeySource`].
    pub fn new(keys: S, audience: Audience) -> Self {
        let shared = Arc::new(Shared { keys, audience, decoy: PreparedKey::decoy() });
        Self { shared, binding: Binding::default() }
    }

    /// Requires a channel binding. On a stream without one, the handshake fails before anything is sent, with the kind
    /// [`ChannelBinding`](HandshakeErrorKind::ChannelBinding). By default, a channel binding is used if the stream has
    /// one.
    ///
    /// Inside TLS, this prevents a relay. TLS 1.2 has no channel binding of this kind. Without this setting, a man in
    /// the middle who makes both sides use TLS 1.2 has a handshake without a channel binding, and can relay it.
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Ignores the channel binding of the stream, for TLS that ends at a proxy: the two sides then have different
    /// channels. The proxy can then relay the handshake. Both sides must ignore it.
    #[must_use]
    pub fn dangerous_ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }
}

impl<S: KeySource<PreparedKey>> Mechanism for Server<S> {
    type Role = mechanism::ServerRole;
    type Handshake = ServerHandshake<S>;

    const NAME: &'static str = "mutual";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ServerHandshake<S>>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        // nothing sent -> challenge sent, proof awaited
        Ok(Start {
            codec: Codec::new(),
            send: Some(Message(Content::Challenge { nonce })),
            handshake: ServerHandshake {
                shared: Arc::clone(&self.shared),
                state: State::AwaitingProof { nonce, binding },
            },
        })
    }
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), binding: self.binding }
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("audience", &self.shared.audience)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

/// The server's state machine. It waits for the client's proof, then for the keys of the id in it.
pub struct ServerHandshake<S> {
    shared: Arc<Shared<S>>,
    state: State,
}

enum State {
    AwaitingProof { nonce: Nonce, binding: Option<ChannelBinding> },
    LookingUp { transcript: Transcript, tag: Tag, claimed: ClaimedKeyId },
    Done,
}

impl<S: KeySource<PreparedKey>> Handshake for ServerHandshake<S> {
    type Codec = Codec;
    type Message = Message;
    type Peer = Peer<S::Metadata>;
    type Lookup = S::Lookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = MAX_PROOF_LEN;
    const MAX_SEND_LEN: usize = MAX_SERVER_MESSAGE_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        match (std::mem::replace(&mut self.state, State::Done), input) {
            (State::AwaitingProof { nonce, binding }, Input::Frame(frame)) => {
                self.look_up(&nonce, binding.as_ref(), &frame)
            }
            (State::LookingUp { transcript, tag, claimed }, Input::Found(found)) => {
                self.verify(&transcript, &tag, claimed, found)
            }
            _ => Err(HandshakeError::malformed("received a message out of order").into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.identity().key_id())
    }

    fn revocation(peer: &Self::Peer) -> Option<&Revocation> {
        peer.identity().revocation()
    }
}

impl<S: KeySource<PreparedKey>> ServerHandshake<S> {
    // proof received -> lookup started
    fn look_up(
        &mut self,
        nonce: &Nonce,
        binding: Option<&ChannelBinding>,
        frame: &Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let proof = Proof::parse(frame).ok_or_else(|| refused(RefusalReason::MalformedProof, None))?;
        let audience = self.shared.audience.as_bytes();
        let transcript = Transcript::new(nonce, proof.nonce, proof.key_id, audience, binding);
        let claimed = ClaimedKeyId::new(proof.key_id);
        self.state = State::LookingUp { transcript, tag: *proof.tag, claimed };
        Ok(Step::LookUp(self.shared.keys.look_up(proof.key_id)))
    }

    // lookup completed -> accepted or refused
    fn verify(
        &self,
        transcript: &Transcript,
        tag: &Tag,
        claimed: ClaimedKeyId,
        found: Result<KeySet<PreparedKey, S::Metadata>, BoxError>,
    ) -> Result<Step<Self>, Reject<Self>> {
        let found = found.map_err(|error| self.lookup_failed(transcript, tag, error))?;
        // The number of MACs is the same for an id with one key, with several and with none. For an unknown id they
        // are computed with keys of another id, if the source has any, so that the memory accesses are the same too.
        // A match with one of those keys, or with the decoy, does not count.
        let mut to_try = found.keys_to_try();
        let keys = (0..PreparedKey::MAX_KEYS_PER_ID).map(|_| to_try.next().unwrap_or(&self.shared.decoy));
        let position = transcript.first_match(keys, tag);
        let key = position.and_then(|position| found.as_slice().get(position)).ok_or_else(|| {
            let known = !found.as_slice().is_empty();
            let reason = if known { RefusalReason::ProofMismatch } else { RefusalReason::UnknownKeyId };
            refused(reason, Some(claimed))
        })?;
        let peer = Peer { identity: key.identity().clone(), exporter: transcript.exporter(key.key()) };
        let tag = transcript.server_tag(key.key(), tag);
        Ok(Step::Complete { send: Some(Message(Content::Accepted { tag })), peer })
    }
}

impl<S: KeySource<PreparedKey>> ServerHandshake<S> {
    /// Creates the error of a failed lookup.
    ///
    /// If the stored keys of the id cannot be used, the peer is refused with the same bytes and after the same work as
    /// for an unknown id. Otherwise it would learn that the id exists. If the source itself failed, the connection is
    /// closed: the peer may try again later.
    fn lookup_failed(&self, transcript: &Transcript, tag: &Tag, error: BoxError) -> Reject<Self> {
        let unusable_keys = error.is::<KeyError>();
        let error = HandshakeError::with_cause(HandshakeErrorKind::KeySource, error);
        if !unusable_keys {
            return error.into();
        }
        let decoys = (0..PreparedKey::MAX_KEYS_PER_ID).map(|_| &self.shared.decoy);
        black_box(transcript.first_match(decoys, tag));
        Reject::with_message(error, Message(Content::Refused))
    }
}

/// Creates a refusal. The reason is for this side's log. The message for the peer is the same for every reason.
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

impl<S> fmt::Debug for ServerHandshake<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandshake").finish_non_exhaustive()
    }
}

/// The authenticated client: the identity that it has proven. Cheap to clone.
pub struct Peer<A = ()> {
    identity: Identity<A>,
    exporter: Exporter,
}

impl<A> Peer<A> {
    /// Returns the identity that belongs to the client's key.
    #[must_use]
    pub fn identity(&self) -> &Identity<A> {
        &self.identity
    }

    /// Creates a `Peer` without authentication, for unit tests of handlers. It exports random bytes.
    ///
    /// # Panics
    ///
    /// Panics if the operating system returns no random bytes.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn without_handshake(identity: Identity<A>) -> Self {
        Self { identity, exporter: Exporter::without_handshake() }
    }

    /// Fills `out` with secret bytes that only the two sides of this handshake can compute, e.g. a key to encrypt the
    /// stream with. The client gets the same bytes from
    /// [`ServerPeer::export_keying_material`](super::ServerPeer::export_keying_material).
    ///
    /// The bytes for different labels or different contexts are independent of each other.
    ///
    /// # Errors
    ///
    /// Returns an [`ExportError`] if `out` has more than 8,160 bytes, or if `label` or `context` has more than 65,535.
    /// The contents of `out` are then unspecified.
    pub fn export_keying_material(
        &self,
        label: &[u8],
        context: &[u8],
        out: &mut [u8],
    ) -> Result<(), ExportError> {
        self.exporter.export(label, context, out)
    }
}

impl<A> Clone for Peer<A> {
    fn clone(&self) -> Self {
        Self { identity: self.identity.clone(), exporter: self.exporter.clone() }
    }
}

impl<A: fmt::Debug> fmt::Debug for Peer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bytes::BytesMut;
    use tokio_util::codec::{Decoder as _, Encoder as _};

    use super::super::key::DECOY;
    use super::super::{Client, KeyRing};
    use super::*;
    use crate::key::{Key, KeyEntry};

    fn audience() -> Audience {
        Audience::new("orders").unwrap()
    }

    fn client(id: &str, key: impl AsRef<[u8]>) -> Client {
        Client::new(id, &Key::new(key).unwrap(), audience()).unwrap()
    }

    /// Runs a handshake up to the lookup, and then with what was found. The source of the server is not asked.
    fn outcome<S: KeySource<PreparedKey>>(
        server: &Server<S>,
        client: &Client,
        found: Option<Result<KeySet<PreparedKey, S::Metadata>, BoxError>>,
    ) -> Result<(), Reject<ServerHandshake<S>>>
    where
        S::Lookup: Unpin,
    {
        fn transmit(message: Option<Message>) -> Frame {
            let mut bytes = BytesMut::new();
            Codec::new().encode(message.unwrap(), &mut bytes).unwrap();
            Codec::new().decode(&mut bytes).unwrap().unwrap()
        }
        let mut random = |out: &mut [u8]| {
            out.fill(7);
            Ok(())
        };
        let cx = &mut Context::with_random(&mut random);
        let (mut server, mut client) = (server.start(cx).unwrap(), client.start(cx).unwrap());
        let challenge = transmit(server.send.take());
        let Ok(Step::Continue { send }) = client.handshake.step(Input::Frame(challenge)) else {
            unreachable!("the client sends a proof")
        };
        let Ok(Step::LookUp(lookup)) = server.handshake.step(Input::Frame(transmit(send))) else {
            unreachable!("the proof is well-formed")
        };
        let found = found.unwrap_or_else(|| futures::FutureExt::now_or_never(lookup).unwrap());
        server.handshake.step(Input::Found(found)).map(drop)
    }

    /// Everybody knows the decoy key.
    #[test]
    fn proof_under_the_decoy_key_is_refused_for_every_id() {
        let entry = |id| KeyEntry::new(id, Key::generate().unwrap()).unwrap();
        let ring = KeyRing::new([entry("alice"), entry("bob"), entry("bob")]).unwrap();
        let server = Server::new(ring, audience());
        for (id, reason) in [
            ("alice", RefusalReason::ProofMismatch),
            ("bob", RefusalReason::ProofMismatch),
            ("eve", RefusalReason::UnknownKeyId),
        ] {
            let reject = outcome(&server, &client(id, DECOY), None).unwrap_err();
            assert_eq!(reject.error().refusal_reason(), Some(reason), "{id}");
        }
        // The key is indeed that of the decoy.
        let entry = KeyEntry::new("alice", Key::new(DECOY).unwrap()).unwrap();
        let server = Server::new(KeyRing::new([entry]).unwrap(), audience());
        outcome(&server, &client("alice", DECOY), None).unwrap();
    }

    /// The peer cannot tell such an id from an unknown one. If the source itself fails, the peer is not refused.
    #[test]
    fn unusable_keys_of_an_id_are_refused_like_an_unknown_id() {
        let key = [7; 32];
        let server = || {
            let entry = KeyEntry::new("bob", Key::new(key).unwrap()).unwrap();
            Server::new(KeyRing::new([entry]).unwrap(), audience())
        };
        let entry = |key: &[u8]| KeyEntry::new("alice", Key::new(key).unwrap()).unwrap();
        let unusable = [
            vec![entry(b"short")],
            vec![entry(&key), entry(b"short")],
            (1..6).map(|i| entry(&[i; 32])).collect(),
        ];
        for entries in unusable {
            let found: Result<KeySet<PreparedKey>, _> = KeySet::prepare(b"alice", entries);
            let reject =
                outcome(&server(), &client("alice", key), Some(found.map_err(Into::into))).unwrap_err();
            assert_eq!(reject.error().kind(), HandshakeErrorKind::KeySource);
            assert!(matches!(reject.verdict(), Some(Message(Content::Refused))));
            assert!(reject.error().to_string().contains("alice"), "{}", reject.error());
        }
        let failed = Err(io::Error::other("no connection to the database").into());
        let reject = outcome(&server(), &client("alice", key), Some(failed)).unwrap_err();
        assert_eq!(reject.error().kind(), HandshakeErrorKind::KeySource);
        assert!(reject.verdict().is_none());
    }
}
