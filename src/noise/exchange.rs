//! The two messages of `NNpsk0`, for both roles (Noise revision 34, sections 5.3 and 7.4).

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use zeroize::Zeroizing;

use super::Suite;
use super::cipher::{Cipher, TAG_LEN};
use super::key::{PROTOCOL, PreparedKey};
use super::message::{NOISE_LEN, PUBLIC_LEN};
use super::symmetric::{Hash, Secret, Symmetric, initial_hash, mix_hash};
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::wiping_stack;
use crate::transport::ChannelBinding;

/// The seed of an ephemeral key: 32 random bytes. To be moved in a box, since a move would leave a copy.
pub(super) type Seed = Zeroizing<[u8; 32]>;

/// The hash after the prologue.
pub(super) fn hash_prologue(
    suite: Suite,
    key_id: &[u8],
    audience: &[u8],
    binding: Option<&ChannelBinding>,
) -> Hash {
    let (kind, data) = binding.map_or((&b""[..], &b""[..]), |b| (b.kind().as_bytes(), b.data()));
    let len = |field: &[u8]| {
        u16::try_from(field.len())
            .unwrap_or_else(|_| unreachable!("fields have at most 65,535 bytes"))
            .to_be_bytes()
    };
    mix_hash(
        &initial_hash(suite),
        &[
            &len(PROTOCOL),
            PROTOCOL,
            &[suite.number()],
            &len(key_id),
            key_id,
            &len(audience),
            audience,
            &len(kind),
            kind,
            &len(data),
            data,
        ],
    )
}

/// The result of a handshake.
pub(super) struct Session {
    /// From the client to the server.
    pub(super) up: Cipher,
    /// From the server to the client.
    pub(super) down: Cipher,
    pub(super) hash: Hash,
}

/// The client after message 1.
pub(super) struct Initiator {
    state: Symmetric,
    ephemeral: PrivateKey,
}

impl Initiator {
    /// Writes message 1: `psk, e`. To be called in [`wiping_stack`].
    pub(super) fn start(
        suite: Suite,
        key: &PreparedKey,
        prologue: &Hash,
        seed: &Seed,
    ) -> Result<(Box<Self>, [u8; NOISE_LEN]), HandshakeError> {
        let (ephemeral, public) = ephemeral(seed)?;
        let (mut state, message_key) = after_e(suite, key, prologue, &public);
        let tag = state.seal(&message_key);
        Ok((Box::new(Self { state, ephemeral }), message(&public, &tag)))
    }

    /// Reads message 2: `e, ee`. `None` if the server does not hold the key.
    pub(super) fn finish(
        mut self: Box<Self>,
        public: &[u8; PUBLIC_LEN],
        tag: &[u8; TAG_LEN],
    ) -> Option<Session> {
        wiping_stack(move || {
            self.state.mix_hash(public);
            self.state.mix_chaining_key(public);
            let message_key = mix_dh(&mut self.state, &self.ephemeral, public)?;
            if !self.state.opens(&message_key, tag) {
                return None;
            }
            self.state.mix_hash(tag);
            Some(session(&self.state))
        })
    }
}

/// The server after message 1 was opened.
pub(super) struct Responder {
    state: Symmetric,
    /// Of message 1. It is hashed only for the key that is taken.
    tag: [u8; TAG_LEN],
}

impl Responder {
    /// Reads message 1 with one key. `None` if the tag does not match. No Diffie-Hellman is done for that. To be called
    /// in [`wiping_stack`], together with [`answer`](Self::answer).
    pub(super) fn open(
        suite: Suite,
        key: &PreparedKey,
        prologue: &Hash,
        public: &[u8; PUBLIC_LEN],
        tag: &[u8; TAG_LEN],
    ) -> Option<Self> {
        let (state, message_key) = after_e(suite, key, prologue, public);
        state.opens(&message_key, tag).then_some(Self { state, tag: *tag })
    }

    /// Writes message 2: `e, ee`. `None` if the client's public key is of small order.
    pub(super) fn answer(
        mut self,
        client_public: &[u8; PUBLIC_LEN],
        seed: &Seed,
    ) -> Result<Option<(Answered, [u8; NOISE_LEN])>, HandshakeError> {
        self.state.mix_hash(&self.tag);
        let (ephemeral, public) = ephemeral(seed)?;
        self.state.mix_hash(&public);
        self.state.mix_chaining_key(&public);
        let Some(message_key) = mix_dh(&mut self.state, &ephemeral, client_public) else { return Ok(None) };
        let tag = self.state.seal(&message_key);
        Ok(Some((Answered(Box::new(self.state)), message(&public, &tag))))
    }
}

/// The server after message 2. The ciphers are made when the client has answered: they are most of the memory of a
/// session, and a client that replays message 1 does not get there.
// In a box, since a move would leave a copy.
pub(super) struct Answered(Box<Symmetric>);

impl Answered {
    pub(super) fn hash(&self) -> Hash {
        self.0.hash
    }

    pub(super) fn into_session(self) -> Session {
        wiping_stack(move || session(&self.0))
    }
}

/// The state after the tokens `psk`, which was prepared, and `e`, and the key of message 1.
fn after_e(
    suite: Suite,
    key: &PreparedKey,
    prologue: &Hash,
    public: &[u8; PUBLIC_LEN],
) -> (Symmetric, Secret) {
    let prepared = key.state(suite);
    let hash = mix_hash(&mix_hash(prologue, &[&*prepared.psk_hash]), &[public]);
    let (chaining_key, message_key) = prepared.chaining_key.hkdf2(public);
    (Symmetric { suite, chaining_key, hash }, message_key)
}

fn session(state: &Symmetric) -> Session {
    let (up, down) = state.split();
    Session { up, down, hash: state.hash }
}

fn message(public: &[u8; PUBLIC_LEN], tag: &[u8; TAG_LEN]) -> [u8; NOISE_LEN] {
    let mut message = [0; NOISE_LEN];
    message[..PUBLIC_LEN].copy_from_slice(public);
    message[PUBLIC_LEN..].copy_from_slice(tag);
    message
}

pub(super) fn ephemeral(seed: &Seed) -> Result<(PrivateKey, [u8; PUBLIC_LEN]), HandshakeError> {
    // The seed is clamped by X25519 (RFC 7748, section 5).
    let unusable = || HandshakeError::with_detail(HandshakeErrorKind::Random, "no ephemeral key");
    let private = PrivateKey::from_private_key(&X25519, &**seed).map_err(|_| unusable())?;
    let public = private.compute_public_key().map_err(|_| unusable())?;
    let public = public.as_ref().try_into().map_err(|_| unusable())?;
    Ok((private, public))
}

/// `MixKey(DH(e, re))`. `None` if the result is zero, as for points of small order (RFC 7748, section 6.1).
pub(super) fn mix_dh(
    state: &mut Symmetric,
    private: &PrivateKey,
    public: &[u8; PUBLIC_LEN],
) -> Option<Secret> {
    let public = UnparsedPublicKey::new(&X25519, public);
    agreement::agree(private, public, (), |shared| Ok(state.mix_key(shared))).ok()
}
