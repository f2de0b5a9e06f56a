//! CPython's `multiprocessing.connection`: each side challenges the other, the server first.
//!
//! ```text
//!           client                                                       server
//!             │     ┌─────────────┬──────────┬──────────────┐              │
//!             │ ◀───┤ #CHALLENGE# │ {sha256} │ 40 random    ├───────────── │
//!             │     └─────────────┴──────────┴──────────────┘              │
//!             │     ┌──────────┬──────────────────────────────────────┐    │
//!             │ ────┤ {sha256} │ HMAC(key, what follows #CHALLENGE#)  ├──▶ │
//!             │     └──────────┴──────────────────────────────────────┘    │
//!             │ ◀──────────────── #WELCOME# or #FAILURE# ───────────────── │
//!             │                                                            │
//!             │ ────── then the same with the roles exchanged ───────────▶ │
//!
//!  every message has a length of four bytes in front: a signed big-endian integer, here 0 to 256
//! ```
//!
//! The source is `Lib/multiprocessing/connection.py` of CPython 3.12: `deliver_challenge`, `answer_challenge`, and the
//! comment above them. With it a Rust service answers `multiprocessing.connection.Client`, and a Rust client talks to a
//! `Listener`; [`MessageCodec`] then speaks `send_bytes` and `recv_bytes`.
//!
//! # Digests
//!
//! `sha256`, `sha384`, `sha3_256`, `sha3_384`; `md5` only [where it is allowed](Client::digests). Nothing is
//! negotiated: a challenge names the digest, the answer must carry the same, and our challenges name `sha256`.
//!
//! CPython up to 3.11 knows only HMAC-MD5. [`Server::allow_legacy_md5`] accepts a client that takes our challenge
//! whole and answers it with a bare HMAC-MD5, and answers that client's challenge of 20 bytes likewise;
//! [`Client::allow_legacy_md5`] does so with a server whose challenge is of 20 bytes. Our own challenges stay what
//! they are: 20 bytes would have a newer CPython fall back to MD5.
//!
//! # What it proves, and what not
//!
//! That each side holds the key, or relays to somebody who does. No id says which of several keys a client has, so
//! the server tries them all, as in [`one_way`](super::one_way#several-keys). Nothing protects the stream afterwards,
//! and what Python sends over it is mostly pickled: **whoever is accepted can run code on the other side.**
//!
//! CPython's MAC carries no role: a rogue server without the key can hand a client's challenge to a client on another
//! connection, and hand the answer back. **CPython's own clients are open to this.** Ours do not answer each other,
//! on one host or on many: half of what a client of ours sends as 40 random bytes is a mark, HMAC of the other half
//! under a key derived for this alone, and it does not answer a challenge that bears the mark. **But CPython's
//! clients answer anything**: where one of them has the same key and can be led to the rogue server too, it answers
//! for us, and ours is fooled as well. Give Rust clients a key that no Python client has, or keep rogue servers off
//! the channel.
//!
//! **A key of this wire must never serve anything else**: a rogue server chooses what the client's key signs.
//!
//! # Example
//!
//! ```
//! use futures::{SinkExt as _, StreamExt as _};
//! use tower_challenge::multiprocessing::{self, MessageCodec};
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry, KeyRing};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let authkey = Key::new("secret password")?;
//! let ring = KeyRing::new([KeyEntry::new("workers", authkey.clone())?])?;
//! let acceptor = Acceptor::new(multiprocessing::Server::new(ring));
//! let connector = Connector::new(multiprocessing::Client::new(&authkey));
//!
//! let (client_io, server_io) = tokio::io::duplex(64);
//! let (accepted, connected) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
//! let mut server = accepted?.into_framed(MessageCodec::new());
//! let mut client = connected?.into_framed(MessageCodec::new());
//! client.send("hello").await?; // conn.send_bytes(b"hello")
//! assert_eq!(&server.next().await.unwrap()?[..], b"hello"); // conn.recv_bytes()
//! # Ok(())
//! # }
//! ```

mod challenge;
mod client;
mod codec;
mod digest;
mod key;
mod message_codec;
mod server;

pub use self::client::{Answering, Client, ProvenServer};
pub use self::codec::{Codec, Frame, Received, Sent};
pub use self::digest::Digest;
pub use self::key::PreparedKey;
pub use self::message_codec::{MessageCodec, MessageTooLong};
pub use self::server::{Challenging, Server};
