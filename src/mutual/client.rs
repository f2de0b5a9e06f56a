use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::{Codec, Frame, MAX_PROOF_LEN, MAX_SERVER_MESSAGE_LEN};
use super::encode::{NONCE_LEN, Nonce, Tag};
use super::exporter::Exporter;
use super::message::{Content, Message, Verdict, parse_challenge};
use super::schedule::Transcript;
use super::{Audience, ExportError, OwnAudience, PreparedKey};
use crate::binding::Binding;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::key::{Key, KeyEntry, KeyError, KeyId, PrepareKey as _};
use crate::mechanism::{self, Context, Handshake, Input, Mechanism, NoLookup, Reject, Start, Step};
use crate::transport::ChannelBinding;

/// The client's side: proves that it holds its key, and verifies that the server holds it too. Cheap to clone.
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
    /// Creates a client that holds `key`, which the server knows by the id `key_id`, for the service `audience`.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError::Unsuitable`] for a key of less than 16 bytes, and [`KeyError::IdLength`] for an id of 0 or
    /// more than 255 bytes.
    pub fn new(
        key_id: impl TryInto<KeyId, Error: Into<KeyError>>,
        key: &Key,
        audience: Audience,
    ) -> Result<Self, KeyError> {
        let key_id = key_id.try_into().map_err(Into::into)?;
        let key = PreparedKey::prepare(key)?;
        Ok(Self { shared: Arc::new(Shared { key_id, key, audience }), binding: Binding::default() })
    }

    /// Creates a client with the id and the key of `entry`, as [`KeyFile`](crate::KeyFile) returns it, for the service
    /// `audience`, such as `"orders"`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`new`](Self::new), and [`KeyError::AudienceLength`] for an audience of 0 or more than 255
    /// bytes.
    pub fn from_entry<A>(
        entry: &KeyEntry<A>,
        audience: impl TryInto<Audience, Error: Into<KeyError>>,
    ) -> Result<Self, KeyError> {
        Self::new(entry.id().clone(), entry.key(), audience.try_into().map_err(Into::into)?)
    }

    /// Declares that this host is itself a server with the audience `own`. Use it on hosts that dial each other under
    /// one key: a client that dials its own audience would accept a connection that leads back to its own host, the
    /// Selfie attack. [`Audience`] has more about it.
    ///
    /// ```
    /// use tower_challenge::mutual::{Audience, Client};
    /// use tower_challenge::{Key, KeyEntry};
    ///
    /// let entry = KeyEntry::new("orders", Key::generate()?)?;
    /// let own = Audience::new("orders/host-1")?;
    ///
    /// let client = Client::from_entry(&entry, "orders/host-2")?;
    /// assert!(client.serving_as(&own).is_ok());
    ///
    /// let client = Client::from_entry(&entry, "orders/host-1")?;
    /// assert!(client.serving_as(&own).is_err());
    /// # Ok::<(), tower_challenge::KeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`OwnAudience`] if this client dials `own`.
    pub fn serving_as(self, own: &Audience) -> Result<Self, OwnAudience> {
        OwnAudience::check(&self.shared.audience, own)?;
        Ok(self)
    }

    /// Requires a channel binding. On a stream without one, the handshake fails before anything is sent, with the kind
    /// [`ChannelBinding`](HandshakeErrorKind::ChannelBinding). By default, a channel binding is used if the stream has
    /// one.
    ///
    /// [`Server::require_channel_binding`](super::Server::require_channel_binding) says which attack this prevents.
    #[must_use]
    pub fn require_channel_binding(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Ignores the channel binding of the stream, for TLS that ends at a proxy. The proxy can then relay the handshake.
    /// Both sides must ignore it.
    #[must_use]
    pub fn dangerous_ignore_channel_binding(mut self) -> Self {
        self.binding = Binding::Ignored;
        self
    }
}

impl Mechanism for Client {
    type Role = mechanism::ClientRole;
    type Handshake = ClientHandshake;

    const NAME: &'static str = "mutual";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ClientHandshake>, HandshakeError> {
        let binding = self.binding.choose(cx)?;
        let mut nonce = [0; NONCE_LEN];
        cx.fill_random(&mut nonce)?;
        // nothing sent -> challenge awaited
        let state = State::AwaitingChallenge { nonce, binding };
        let handshake = ClientHandshake { shared: Arc::clone(&self.shared), state };
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

/// The client's state machine. It waits for the challenge, then for the verdict.
pub struct ClientHandshake {
    shared: Arc<Shared>,
    state: State,
}

enum State {
    AwaitingChallenge { nonce: Nonce, binding: Option<ChannelBinding> },
    AwaitingVerdict { transcript: Transcript, tag: Tag },
    Done,
}

impl Handshake for ClientHandshake {
    type Codec = Codec;
    type Message = Message;
    type Peer = ServerPeer;
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = MAX_SERVER_MESSAGE_LEN;
    const MAX_SEND_LEN: usize = MAX_PROOF_LEN;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match std::mem::replace(&mut self.state, State::Done) {
            State::AwaitingChallenge { nonce, binding } => self.prove(nonce, binding.as_ref(), &frame),
            State::AwaitingVerdict { transcript, tag } => self.verify(&transcript, &tag, &frame),
            State::Done => Err(HandshakeError::malformed("received a message after the last one").into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

impl ClientHandshake {
    // challenge received -> proof sent, verdict awaited
    fn prove(
        &mut self,
        nonce: Nonce,
        binding: Option<&ChannelBinding>,
        frame: &Frame,
    ) -> Result<Step<Self>, Reject<Self>> {
        let server_nonce = parse_challenge(frame)
            .ok_or_else(|| HandshakeError::malformed("expected a challenge of version 1"))?;
        let Shared { key_id, key, audience } = &*self.shared;
        let transcript =
            Transcript::new(&server_nonce, &nonce, key_id.as_bytes(), audience.as_bytes(), binding);
        let tag = transcript.client_tag(key);
        self.state = State::AwaitingVerdict { transcript, tag };
        Ok(Step::Continue { send: Some(Message(Content::Proof { nonce, key_id: key_id.clone(), tag })) })
    }

    // verdict received -> accepted, refused, or server not authenticated
    fn verify(&self, transcript: &Transcript, tag: &Tag, frame: &Frame) -> Result<Step<Self>, Reject<Self>> {
        let key = &self.shared.key;
        match Verdict::parse(frame) {
            Some(Verdict::Accepted(server_tag)) if transcript.verify_server_tag(key, tag, &server_tag) => {
                Ok(Step::Complete { send: None, peer: ServerPeer { exporter: transcript.exporter(key) } })
            }
            Some(Verdict::Accepted(_)) => {
                Err(HandshakeError::new(HandshakeErrorKind::ServerNotAuthenticated).into())
            }
            Some(Verdict::Refused) => Err(HandshakeError::refused().into()),
            None => Err(HandshakeError::malformed("expected a verdict").into()),
        }
    }
}

impl fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandshake").finish_non_exhaustive()
    }
}

/// The authenticated server: it holds the client's key and has the audience that the client means to reach. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct ServerPeer {
    exporter: Exporter,
}

impl ServerPeer {
    /// Creates a `ServerPeer` without authentication, for unit tests. It exports random bytes.
    ///
    /// # Panics
    ///
    /// Panics if the operating system returns no random bytes.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn without_handshake() -> Self {
        Self { exporter: Exporter::without_handshake() }
    }

    /// Fills `out` with secret bytes that only the two sides of this handshake can compute. The server gets the same
    /// bytes from [`Peer::export_keying_material`](super::Peer::export_keying_material).
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
