use std::fmt;
use std::sync::Arc;

use super::codec::{Codec, LONGEST_OF_SERVER, LONGEST_PROOF};
use super::encode::{NONCE_LEN, Nonce, Tag};
use super::exporter::Exporter;
use super::frame::Frame;
use super::message::{Content, Message, Verdict, parse_challenge};
use super::schedule::Transcript;
use super::{Audience, Binding, ExportError, PreparedKey};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::{Key, KeyError, KeyId, PrepareKey as _};
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step};
use crate::transport::ChannelBinding;

/// The client's side: proves that it holds its key, and has the server prove the same. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    binding: Binding,
}

struct Shared {
    key_id: KeyId,
    key: PreparedKey,
    audience: Audience,
}

impl Client {
    /// A client that holds `key` under the name of `key_id` and means to reach `audience`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsuitable`] for a key of less than 16 bytes, [`KeyError::IdLength`] for an id of no or more than
    /// 255.
    pub fn new(
        key_id: impl TryInto<KeyId, Error: Into<KeyError>>,
        key: &Key,
        audience: Audience,
    ) -> Result<Self, KeyError> {
        let key_id = key_id.try_into().map_err(Into::into)?;
        let key = PreparedKey::prepare(key)?;
        Ok(Self { shared: Arc::new(Shared { key_id, key, audience }), binding: Binding::default() })
    }

    /// See [`Server::require_channel_binding`](super::Server::require_channel_binding).
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// See [`Server::ignore_channel_binding`](super::Server::ignore_channel_binding).
    #[must_use]
    pub fn ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }
}

impl Mechanism for Client {
    type Role = mechanism::Client;
    type Handshake = Proving;

    const NAME: &'static str = "mutual";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Proving>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        // nothing received -> challenge awaited
        let handshake = Proving { shared: Arc::clone(&self.shared), state: State::Begun { nonce, binding } };
        Ok(Start { codec: Codec::new(), handshake, send: None })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("key_id", &self.shared.key_id)
            .field("audience", &self.shared.audience)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

/// The client's state: it awaits the challenge, then the verdict.
pub struct Proving {
    shared: Arc<Shared>,
    state: State,
}

enum State {
    Begun { nonce: Nonce, binding: Option<ChannelBinding> },
    Proven { transcript: Transcript, tag: Tag },
    Over,
}

impl Handshake for Proving {
    type Codec = Codec;
    type Message = Message;
    type Peer = ProvenServer;
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = LONGEST_OF_SERVER;
    const LONGEST_SENT: usize = LONGEST_PROOF;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Begun { nonce, binding } => self.prove(nonce, binding.as_ref(), &frame),
            State::Proven { transcript, tag } => self.judge(&transcript, &tag, &frame),
            State::Over => Err(HandshakeError::malformed("a message that nobody waits for").into()),
        }
    }
}

impl Proving {
    // challenge received -> proof sent, verdict awaited
    fn prove(
        &mut self,
        nonce: Nonce,
        binding: Option<&ChannelBinding>,
        frame: &Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let server_nonce = parse_challenge(frame)
            .ok_or_else(|| HandshakeError::malformed("no challenge of this version"))?;
        let Shared { key_id, key, audience } = &*self.shared;
        let transcript =
            Transcript::new(&server_nonce, &nonce, key_id.as_bytes(), audience.as_bytes(), binding);
        let tag = transcript.client_tag(key);
        self.state = State::Proven { transcript, tag };
        Ok(Step::Continue { send: Some(Message(Content::Proof { nonce, key_id: key_id.clone(), tag })) })
    }

    // verdict received -> accepted, refused, or not convinced
    fn judge(&self, transcript: &Transcript, tag: &Tag, frame: &Frame) -> Result<Step<Self>, Reject<Self>> {
        let key = &self.shared.key;
        match Verdict::parse(frame) {
            Some(Verdict::Accepted(server_tag)) if transcript.verify_server_tag(key, tag, &server_tag) => {
                Ok(Step::Complete { send: None, peer: ProvenServer { exporter: transcript.exporter(key) } })
            }
            Some(Verdict::Accepted(_)) => Err(HandshakeError::new(HandshakeErrorKind::ServerUnproven).into()),
            Some(Verdict::Refused) => Err(HandshakeError::refused().into()),
            None => Err(HandshakeError::malformed("no verdict").into()),
        }
    }
}

impl fmt::Debug for Proving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proving").finish_non_exhaustive()
    }
}

/// What the server has proven: that it holds the client's key, and goes by the audience that the client meant. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct ProvenServer {
    exporter: Exporter,
}

impl ProvenServer {
    /// A server that has proven nothing, for unit tests. What it exports are random bytes.
    ///
    /// # Panics
    ///
    /// If the operating system has no random bytes.
    #[must_use]
    pub fn without_handshake() -> Self {
        Self { exporter: Exporter::without_handshake() }
    }

    /// See [`Peer::export_keying_material`](super::Peer::export_keying_material).
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
