//! Mutual authentication: each side proves to the other that it holds the key. The choice for new systems.
//!
//! Compared with [`one_way`](crate::one_way), the server proves its key too, the client names its key, and both proofs
//! cover the name of the service and the channel.
//!
//! ```text
//!    client                                                  server
//!      │      ┌───────────┬───────────────┐                     │
//!  1   │ ◀────┤ version 1 │ server nonce  ├──────────────────── │  CHALLENGE
//!      │      └─────1─────┴──────32───────┘                     │
//!      │      ┌───────────────┬───┬─────────┬────────────┐      │
//!  2   │ ─────┤ client nonce  │ n │ key id  │ client tag ├────▶ │  PROOF
//!      │      └──────32───────┴─1─┴─1..=255─┴─────32─────┘      │
//!      │      ┌───┬────────────┐      ┌───┐                     │
//!  3   │ ◀────┤ 1 │ server tag ├─ or ─┤ 0 ├──────────────────── │  VERDICT
//!      │      └─1─┴─────32─────┘      └─1─┘                     │
//!
//!  The numbers below the fields are their lengths in bytes. A frame carries
//!  each message: a length of two bytes, big-endian and at most 1024, and then
//!  as many bytes.
//! ```
//!
//! 1. The server sends the version of the protocol and 32 random bytes.
//! 2. The client sends 32 random bytes, the id of its key (`n` is its length) and its proof.
//! 3. The server looks up the key and verifies the proof. If it is valid, the server sends 1 and its own proof, and the
//!    client verifies that proof. Otherwise the server sends 0 and closes the connection.
//!
//! The protocol is the three-pass mutual authentication of ISO/IEC 9798-4, with the repairs of Basin, Cremers and
//! Meier. With `prk = HKDF-Extract("tower-challenge mutual v1", key)` (RFC 5869, SHA-256):
//!
//! - `transcript` = SHA-256 of the following, each with its length in two bytes before it:
//!   `"tower-challenge mutual v1"`, server nonce, client nonce, key id, audience, kind of the channel binding, data of
//!   the channel binding;
//! - `client tag` = HMAC-SHA-256 under HKDF-Expand(prk, `"client proof"`) of the transcript;
//! - `server tag` = HMAC-SHA-256 under HKDF-Expand(prk, `"server proof"`) of the transcript and the client tag;
//! - exported keying material = HKDF-Expand(HKDF-Expand(prk, `"exporter"` and the transcript), label, context).
//!
//! # What it proves
//!
//! - To the server: the client holds the key with this id at the time of the handshake, and means to reach this
//!   [`Audience`]: one name for each host if hosts dial each other, otherwise one for the service.
//! - To the client: the server holds the same key and has the audience that the client means to reach.
//! - To both, if the stream has a [channel binding](crate::transport::ChannelBinding): the other side is the other
//!   end of this channel.
//!
//! Each field prevents an attack:
//!
//! | field | attack |
//! |---|---|
//! | both nonces | replay of a proof to the server, or of a verdict to the client |
//! | a key for each role, and the client tag within the server tag | reflection: the tag of one side is never valid as the tag of the other |
//! | key id | if two ids share a key, a proof made under one id is used for the other |
//! | audience | Selfie (RFC 9257, section 4.1): a host that is client and server under one key is connected to itself, or to another host or service with the same key |
//! | channel binding | relay: a man in the middle of two channels forwards the messages |
//! | name and version of the protocol | a tag of another protocol or version is used in this one |
//! | length before each field | the end of one field is read as the beginning of the next |
//!
//! # What it does not prove or protect
//!
//! - **No forward secrecy.** An attacker who steals the key later can compute the exported keying material of recorded
//!   handshakes.
//! - **No protection of the stream after the handshake.** Run the handshake inside TLS with
//!   [channel binding](Server::require_channel_binding), or on a channel that is private already, or encrypt the stream
//!   yourself with [exported keying material](Peer::export_keying_material).
//! - **No protection of weak keys.** A recorded handshake is enough to test guesses, so keys must be random.
//! - **A refusal is not authenticated.** An attacker on the wire can send one.
//! - **Key ids are not encrypted.** They are names, not secrets.
//!
//! - **No protection between hosts of one audience.** If hosts that share an audience and a key dial each other, one of
//!   them can be connected to itself, or to another one than the one that it dials. Give each host an
//!   [audience](Audience#one-audience-a-host-if-hosts-dial-each-other) of its own.
//!
//! # What a refusal reveals
//!
//! An unknown id, a wrong proof, another audience, another channel, a malformed proof and an id whose stored keys cannot
//! be used are refused with the same bytes. The work is the same for all of them too, except for a malformed proof. That
//! is refused at once, before any key is looked up, so the time says nothing about keys.
//! [`KeySource`](crate::key::KeySource) says what the lookup itself can reveal.
//!
//! On the server's side, the error for unusable stored keys has the kind
//! [`KeySource`](crate::HandshakeErrorKind::KeySource), and [penalties](crate::admission::Penalties) do not count it. If
//! the source itself fails, the connection is closed without a verdict.
//!
//! # Example
//!
//! ```
//! use tower_challenge::mutual::{self, Audience};
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let entry = KeyEntry::new("alice", Key::generate()?)?;
//! let client = mutual::Client::from_entry(&entry, "orders")?;
//! let keys = mutual::KeyRing::new([entry])?;
//! let server = mutual::Server::new(keys, Audience::new("orders")?);
//!
//! let (client_io, server_io) = tokio::io::duplex(64);
//! let acceptor = Acceptor::new(server);
//! let connector = Connector::new(client);
//! let (accepted, connected) =
//!     tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
//! let (accepted, connected) = (accepted?, connected?);
//! assert_eq!(accepted.peer().identity().key_id(), &"alice");
//!
//! // Both sides can now derive the same secret, which is unique to this
//! // connection.
//! let label = b"EXPERIMENTAL my-protocol";
//! let (mut ours, mut theirs) = ([0; 32], [0; 32]);
//! accepted.peer().export_keying_material(label, b"", &mut ours)?;
//! connected.peer().export_keying_material(label, b"", &mut theirs)?;
//! assert_eq!(ours, theirs);
//! # Ok(())
//! # }
//! ```

mod client;
mod codec;
mod encode;
mod exporter;
mod key;
mod message;
mod schedule;
mod server;

pub use self::client::{Client, ServerPeer};
pub use self::exporter::ExportError;
pub use self::key::PreparedKey;
pub use self::server::{Peer, Server};
pub use crate::audience::{Audience, OwnAudience};

/// A [`KeyRing`](crate::KeyRing) for this mechanism.
pub type KeyRing<A = ()> = crate::key::KeyRing<PreparedKey, A>;
