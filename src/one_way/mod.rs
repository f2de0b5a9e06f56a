//! The classic challenge-response: the server sends a nonce, the client returns its MAC, the server sends a verdict.
//!
//! This mechanism is for peers that already speak this wire, on channels that are private already: a Unix socket, a
//! loopback port, a tunnel. For new systems use `mutual`, in which the server also proves that it holds the key.
//!
//! ```text
//!    client                                       server
//!      │       ┌─────────────────────────┐          │
//!  1   │ ◀─────┤ nonce          32 bytes ├───────── │  CHALLENGE
//!      │       └─────────────────────────┘          │
//!      │       ┌─────────────────────────┐          │
//!  2   │ ──────┤ HMAC-MD5       16 bytes ├────────▶ │  ANSWER
//!      │       └─────────────────────────┘          │
//!      │       ┌─────────────────────────┐          │
//!  3   │ ◀─────┤ verdict        12 bytes ├───────── │  VERDICT
//!      │       └─────────────────────────┘          │
//! ```
//!
//! 1. The server sends 32 random bytes.
//! 2. The client sends HMAC-MD5(key, nonce).
//! 3. The server compares the answer in constant time. It sends the UTF-8 bytes of `验证成功` ("authentication
//!    succeeded"), or those of `验证失败` ("authentication failed") and closes the connection.
//!
//! No message has a length prefix. Bytes after the answer and bytes after the first verdict belong to the application.
//! HMAC is defined in RFC 2104; RFC 2202 has test vectors for HMAC-MD5. [`Wire`] sets another nonce length and other
//! verdicts, or [none](Wire::without_verdict), and [`Server::with_digest`] sets another digest.
//!
//! # Let the client speak first
//!
//! Clients from tutorials read the verdict with `recv(1024)` and compare all that they got. If the service sends a
//! greeting, it often arrives together with the verdict, and their comparison fails. With such clients, let the service
//! wait for the client's first message, or read 12 bytes in the client.
//!
//! # What it proves, and what it does not
//!
//! The handshake proves that the peer held the key when it answered, or that it relayed the challenge to a party that
//! did. It proves nothing else:
//!
//! - The client learns nothing about the server. A rogue server can accept any answer. It can also relay the challenge
//!   of a legitimate server and be accepted there in place of the client. On a wire
//!   [without a verdict](Wire::without_verdict), the client does not even learn whether it was accepted.
//! - A rogue server chooses the bytes that the client's key signs. **Never use a key of this mechanism for anything
//!   else.**
//! - The stream after the handshake is not protected. An attacker on the wire can read and change it.
//!
//! MD5 is broken wherever collision resistance matters. HMAC does not depend on it, and no forgery of HMAC-MD5 is known
//! (RFC 6151, section 2.3).
//!
//! # Several keys
//!
//! The answer has no key id. The server therefore tries all keys of its ring, always every one of them, and the peer
//! is the holder of the key that matches. Each key costs about 250 ns per answer, from unauthenticated peers too, so
//! a ring holds at most [64](PreparedKey#associatedconstant.MAX_KEYS) keys by default. Use
//! [`KeyRing::with_max_keys`](crate::KeyRing::with_max_keys) to raise this limit.
//!
//! # Example
//!
//! ```
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry, one_way};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let keys = one_way::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
//! let acceptor = Acceptor::new(one_way::Server::new(keys));
//! let connector = Connector::new(one_way::Client::new(&key));
//!
//! let (client, server) = tokio::io::duplex(64);
//! let (accepted, connected) =
//!     tokio::join!(acceptor.accept(server), connector.connect(client));
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

pub use self::client::{Client, ServerPeer};
pub use self::key::{HmacDigest, PreparedKey};
pub use self::server::Server;
pub use self::wire::{Wire, WireError};

/// A [`KeyRing`](crate::KeyRing) for this mechanism, with the digest MD5.
pub type KeyRing<A = ()> = crate::key::KeyRing<PreparedKey, A>;
