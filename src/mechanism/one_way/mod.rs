//! The classic: the server challenges, the client answers with a MAC, the server says yes or no.
//!
//! ```text
//!                       client                                server
//!                         │    ┌────────────────────────────┐   │
//!                         │ ◀──┤ nonce              32 bytes├── │  random
//!                         │    └────────────────────────────┘   │
//!                         │    ┌────────────────────────────┐   │
//! HMAC-MD5(key, nonce)    │ ───┤ answer             16 bytes├─▶ │  compared in constant time
//!                         │    └────────────────────────────┘   │
//!                         │    ┌────────────────────────────┐   │
//!                         │ ◀──┤ verdict            12 bytes├── │  验证成功 or 验证失败
//!                         │    └────────────────────────────┘   │
//! ```
//!
//! No message has a prefix; what follows the verdict (and, from the client, the answer) is the application's. After the
//! second verdict the server closes. HMAC is RFC 2104, with MD5 as the digest RFC 2202.
//!
//! # What it proves, and what not
//!
//! That whoever answered held the key when it answered, on this connection or on one that it was relayed from. No more:
//!
//! - The client learns nothing about the server. A rogue server can say yes to any answer, or relay the challenge of
//!   a true server and go in as the client.
//! - A rogue server chooses what the client's key signs. **A key of this wire must never serve anything else.**
//! - Nothing protects what follows: whoever is on the wire can read it and change it.
//!
//! It is for compatibility with what speaks it already, and for channels that are private already: a Unix socket, a
//! loopback port, a tunnel. MD5 is broken where collisions matter; HMAC does not rest on that, and no forgery of
//! HMAC-MD5 is known (RFC 6151, section 2.3). A wire of your own can take [another digest](Server::with_digest).
//!
//! # Several keys
//!
//! The answer does not say which key made it, so the server tries every key of its ring, always all of them, and the
//! peer is whoever the matching key belongs to. Each costs about 250 ns for every stranger who answers, so a ring holds
//! at most [64](PreparedKey#associatedconstant.MAX_KEYS) unless its owner [raises that](crate::KeyRing::with_max_keys).
//!
//! # Example
//!
//! ```
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry, KeyRing, one_way};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let ring = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
//! let acceptor = Acceptor::new(one_way::Server::new(ring));
//! let connector = Connector::new(one_way::Client::new(&key));
//!
//! let (client_io, server_io) = tokio::io::duplex(64);
//! let (accepted, connected) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
//! assert_eq!(accepted?.peer().key_id(), &"alice");
//! connected?;
//! # Ok(())
//! # }
//! ```

mod client;
mod codec;
mod key;
mod message;
mod server;
mod wire;

pub use self::client::{Answering, Client, UnprovenServer};
pub use self::codec::{ClientCodec, ServerCodec};
pub use self::key::{Digest, PreparedKey};
pub use self::message::{Answer, Nonce, ServerMessage};
pub use self::server::{Challenging, Server};
pub use self::wire::{Wire, WireError};
