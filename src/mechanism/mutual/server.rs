use std::fmt;
use std::sync::Arc;

use super::codec::{Codec, LONGEST_OF_SERVER, LONGEST_PROOF};
use super::encode::{NONCE_LEN, Nonce, Tag};
use super::exporter::Exporter;
use super::frame::Frame;
use super::message::{Content, Message, Proof};
use super::schedule::Transcript;
use super::{Audience, Binding, ExportError, PreparedKey};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::{FoundKeys, Identity, KeyId, Keys, LookupError, PrepareKey as _};
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, Reject, Start, Step, first_match};
use crate::transport::ChannelBinding;

/// The server's side: challenges, accepts who holds a key of `S`, and proves that it holds it too.
pub struct Server<S> {
    shared: Arc<Shared<S>>,
    binding: Binding,
}

struct Shared<S> {
    keys: S,
    audience: Audience,
    decoy: PreparedKey,
}

impl<S: Keys<PreparedKey>> Server<S> {
    /// A server that goes by the name of `audience` and finds keys in `keys`: a [`KeyRing`](crate::KeyRing), or any
    /// other [source](Keys).
    pub fn new(keys: S, audience: Audience) -> Self {
        let shared = Arc::new(Shared { keys, audience, decoy: PreparedKey::decoy() });
        Self { shared, binding: Binding::default() }
    }

    /// Ends a handshake on a stream without a channel binding before anything is sent, as
    /// [`ChannelBinding`](HandshakeErrorKind::ChannelBinding). Without this, a binding is used if the stream has one.
    ///
    /// Inside TLS this is what stops a relay. TLS 1.2 has no binding of this kind: without this, a man in the middle
    /// who brings both sides to TLS 1.2 has them bound to nothing, and can relay.
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Binds to no channel, whatever the stream says: for TLS that ends at a proxy, where the two sides do not see the
    /// same channel. The proxy can then relay.
    #[must_use]
    pub fn ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }
}

impl<S: Keys<PreparedKey>> Mechanism for Server<S> {
    type Role = mechanism::Server;
    type Handshake = Challenging<S>;

    const NAME: &'static str = "mutual";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Challenging<S>>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        // nothing sent -> challenge sent
        Ok(Start {
            codec: Codec::new(),
            send: Some(Message(Content::Challenge { nonce })),
            handshake: Challenging {
                shared: Arc::clone(&self.shared),
                state: State::Challenged { nonce, binding },
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

/// The server's state once the challenge has been sent: it awaits the proof, then the keys of the id in it.
pub struct Challenging<S> {
    shared: Arc<Shared<S>>,
    state: State,
}

enum State {
    Challenged { nonce: Nonce, binding: Option<ChannelBinding> },
    Asked { transcript: Transcript, tag: Tag },
    Over,
}

impl<S: Keys<PreparedKey>> Handshake for Challenging<S> {
    type Codec = Codec;
    type Message = Message;
    type Peer = Peer<S::Attached>;
    type Lookup = S::Lookup;

    const LONGEST_RECEIVED: usize = LONGEST_PROOF;
    const LONGEST_SENT: usize = LONGEST_OF_SERVER;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        match (std::mem::replace(&mut self.state, State::Over), input) {
            (State::Challenged { nonce, binding }, Input::Frame(frame)) => {
                self.ask(&nonce, binding.as_ref(), &frame)
            }
            (State::Asked { transcript, tag }, Input::Found(found)) => self.judge(&transcript, &tag, found),
            _ => Err(HandshakeError::malformed("a message that nobody waits for").into()),
        }
    }

    fn key_id(peer: &Self::Peer) -> Option<&KeyId> {
        Some(peer.identity().key_id())
    }
}

impl<S: Keys<PreparedKey>> Challenging<S> {
    // proof received -> keys looked up
    fn ask(
        &mut self,
        nonce: &Nonce,
        binding: Option<&ChannelBinding>,
        frame: &Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let proof = Proof::parse(frame).ok_or_else(refused)?;
        let audience = self.shared.audience.as_bytes();
        let transcript = Transcript::new(nonce, proof.nonce, proof.key_id, audience, binding);
        self.state = State::Asked { transcript, tag: *proof.tag };
        Ok(Step::LookUp(self.shared.keys.look_up(proof.key_id)))
    }

    // keys looked up -> accepted or refused
    fn judge(
        &self,
        transcript: &Transcript,
        tag: &Tag,
        found: Result<FoundKeys<PreparedKey, S::Attached>, LookupError>,
    ) -> Result<Step<Self>, Reject<Self>> {
        let found =
            found.map_err(|error| HandshakeError::with_source(HandshakeErrorKind::KeySource, error))?;
        // As many MACs for an id with one key, with several, and with none. Of an id that is not known, those to try
        // are another's, if the source has any, so that not even what is read of the memory tells: they do not count.
        let mut to_try = found.keys_to_try();
        let matches = (0..PreparedKey::MAX_KEYS_PER_ID)
            .map(|_| transcript.verify_client_tag(to_try.next().unwrap_or(&self.shared.decoy), tag));
        let place = first_match(matches);
        let holder = place.and_then(|place| found.as_slice().get(place)).ok_or_else(refused)?;
        let peer = Peer { identity: holder.identity().clone(), exporter: transcript.exporter(holder.key()) };
        let tag = transcript.server_tag(holder.key(), tag);
        Ok(Step::Complete { send: Some(Message(Content::Accepted { tag })), peer })
    }
}

/// The one refusal that there is, whatever is wrong.
fn refused<H: Handshake<Message = Message>>() -> Reject<H> {
    Reject::telling(HandshakeError::refused(), Message(Content::Refused))
}

impl<S> fmt::Debug for Challenging<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenging").finish_non_exhaustive()
    }
}

/// What a client has proven: whose key it holds. Cheap to clone.
pub struct Peer<A = ()> {
    identity: Identity<A>,
    exporter: Exporter,
}

impl<A> Peer<A> {
    /// Whose key it holds.
    #[must_use]
    pub fn identity(&self) -> &Identity<A> {
        &self.identity
    }

    /// A peer that nobody has authenticated, for the unit tests of handlers. What it exports are random bytes.
    ///
    /// # Panics
    ///
    /// If the operating system has no random bytes.
    #[must_use]
    pub fn without_handshake(identity: Identity<A>) -> Self {
        Self { identity, exporter: Exporter::without_handshake() }
    }

    /// Fills `out` with bytes that both sides can compute and nobody else, bound to this handshake: to key a protection
    /// of one's own, say. Other labels and other contexts give independent bytes.
    ///
    /// # Errors
    ///
    /// [`ExportError`] for more than 8,160 bytes, or a label or context of more than 65,535; `out` is to be thrown
    /// away.
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
