//! The choice for new systems: each side proves to the other that it holds the key.
//!
//! ```text
//!                client                                                 server
//!                  │     ┌────────┬───────────────┐                        │
//!                  │ ◀───┤ ver. 1 │ server nonce  ├─────────────────────── │  CHALLENGE
//!                  │     └───1────┴──────32───────┘                        │
//!                  │     ┌───────────────┬───┬──────────┬─────────────┐    │
//!  PROOF           │ ────┤ client nonce  │ n │ key id   │ client tag  ├──▶ │
//!                  │     └──────32───────┴─1─┴──1..=255─┴─────32──────┘    │
//!                  │     ┌───┬─────────────┐         ┌───┐                 │
//!                  │ ◀───┤ 1 │ server tag  ├── or ───┤ 0 ├──────────────── │  VERDICT
//!                  │     └─1─┴─────32──────┘         └─1─┘                 │
//!
//!  every message is a frame: a length of two bytes, big-endian, at most 1024, and as many bytes
//! ```
//!
//! It is ISO/IEC 9798-4's three-pass mutual authentication with the repairs of Basin, Cremers and Meier. With
//! `prk = HKDF-Extract("tower-challenge mutual v1", key)` (RFC 5869, SHA-256):
//!
//! - `transcript` = SHA-256 of these, each with a length of two bytes in front: `"tower-challenge mutual v1"`, server
//!   nonce, client nonce, key id, audience, kind of the channel binding, its data;
//! - `client tag` = HMAC-SHA-256 under HKDF-Expand(prk, `"client proof"`) of the transcript;
//! - `server tag` = HMAC-SHA-256 under HKDF-Expand(prk, `"server proof"`) of the transcript and the client tag;
//! - exported keying material = HKDF-Expand(HKDF-Expand(prk, `"exporter"` and the transcript), label, context).
//!
//! # What each field is for
//!
//! | field | the attack that it stops |
//! |---|---|
//! | both nonces | replay: to the server, of a proof; to the client, of a verdict |
//! | a key for each role, the client's tag within the server's | reflection: a tag of one side passes for nothing of the other's |
//! | key id | a proof made with one key passing as another's where two ids share one |
//! | audience | Selfie (RFC 9257, section 4.1): a host that is client and server under one key being led back to itself, or to another service of the same key |
//! | channel binding | relay: a man in the middle of two channels handing the messages on |
//! | the protocol's name and version | a tag of another protocol or version passing for one of this |
//! | the length in front of each | the end of one field passing for the beginning of the next |
//!
//! # What it does not give
//!
//! - **No forward secrecy.** Who steals the key later can compute what was exported from recorded handshakes.
//! - **No protection of the stream afterwards.** It runs inside TLS with [channel binding](Server::require_channel_binding),
//!   or on a channel that is private already; or what is exported keys a protection of your own.
//! - **An unauthenticated refusal.** Whoever is on the wire can refuse.
//! - **The key id in clear.** It is a name, not a secret.
//!
//! The same bytes refuse an unknown id, a wrong proof, another audience, another channel and a malformed proof, after
//! the same work; what the lookup itself may give away is said at [`Keys`](crate::key::Keys).
//!
//! # Example
//!
//! ```
//! use tower_challenge::mutual::{self, Audience};
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry, KeyRing};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
//! let acceptor = Acceptor::new(mutual::Server::new(keys, Audience::new("orders")?));
//! let connector = Connector::new(mutual::Client::new("alice", &key, Audience::new("orders")?)?);
//!
//! let (client_io, server_io) = tokio::io::duplex(64);
//! let (accepted, connected) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
//! let (accepted, connected) = (accepted?, connected?);
//! assert_eq!(accepted.peer().identity().key_id(), &"alice");
//!
//! // Both have the same 32 bytes now, which nobody else has, and which no other connection has.
//! let (mut ours, mut theirs) = ([0; 32], [0; 32]);
//! accepted.peer().export_keying_material(b"EXPERIMENTAL my-protocol", b"", &mut ours)?;
//! connected.peer().export_keying_material(b"EXPERIMENTAL my-protocol", b"", &mut theirs)?;
//! assert_eq!(ours, theirs);
//! # Ok(())
//! # }
//! ```

mod audience;
mod client;
mod codec;
mod encode;
mod exporter;
mod frame;
mod key;
mod message;
mod schedule;
mod server;

pub use self::audience::{Audience, AudienceError};
pub use self::client::{Client, ProvenServer, Proving};
pub use self::codec::Codec;
pub use self::exporter::ExportError;
pub use self::frame::Frame;
pub use self::key::PreparedKey;
pub use self::message::Message;
pub use self::server::{Challenging, Peer, Server};

/// How a side uses the channel binding of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Binding {
    /// Bound to the channel if the stream says what it is; else to none.
    #[default]
    IfAny,
    /// No handshake without one.
    Required,
    /// Bound to none, whatever the stream says.
    Ignored,
}

impl Binding {
    /// What goes into the transcript, or the error of a stream that lacks what is required.
    fn choose(
        self,
        cx: &super::Context<'_>,
    ) -> Result<Option<crate::transport::ChannelBinding>, crate::HandshakeError> {
        match (self, cx.channel_binding()) {
            (Self::Ignored, _) => Ok(None),
            (Self::Required, None) => {
                Err(crate::HandshakeError::new(crate::HandshakeErrorKind::ChannelBinding))
            }
            (Self::IfAny | Self::Required, binding) => Ok(binding.cloned()),
        }
    }
}
