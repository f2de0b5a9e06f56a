//! The authentication of CPython's `multiprocessing.connection`: the server challenges the client, then the client the
//! server.
//!
//! With this mechanism a Rust server accepts connections of `multiprocessing.connection.Client`, and a Rust client
//! connects to a `multiprocessing.connection.Listener`. [`MessageCodec`] then reads and writes the messages of
//! `send_bytes` and `recv_bytes`. Between Rust programs use `mutual` instead: it has key ids, and prevents reflection
//! and, with channel binding, relay.
//!
//! ```text
//!    client                                                   server
//!      │      ┌─────────────┬──────────┬─────────────────┐       │
//!  1   │ ◀────┤ #CHALLENGE# │ {sha256} │ 40 random bytes ├────── │
//!      │      └─────────────┴──────────┴─────────────────┘       │
//!      │      ┌──────────┬─────────────────────────┐             │
//!  2   │ ─────┤ {sha256} │ HMAC-SHA-256   32 bytes ├───────────▶ │
//!      │      └──────────┴─────────────────────────┘             │
//!      │      ┌───────────┐      ┌───────────┐                   │
//!  3   │ ◀────┤ #WELCOME# ├─ or ─┤ #FAILURE# ├────────────────── │
//!      │      └───────────┘      └───────────┘                   │
//! 4-6  │      the same three messages in the other direction     │
//!
//!  A length precedes each message: four bytes, a signed big-endian integer,
//!  0 to 256 during the handshake.
//! ```
//!
//! 1. The server sends the name of a digest and 40 random bytes.
//! 2. The client sends the same name and HMAC(key, everything after `#CHALLENGE#`).
//! 3. The server compares in constant time and sends its verdict. After `#FAILURE#` it closes the connection.
//! 4. The client challenges the server,
//! 5. the server answers, and
//! 6. the client sends its verdict.
//!
//! The reference is `Lib/multiprocessing/connection.py` of CPython 3.12: its functions `deliver_challenge` and
//! `answer_challenge`, and the comment before them.
//!
//! # Versions of Python
//!
//! | CPython | its challenge | its answer to a challenge of this crate | how to allow it |
//! |---|---|---|---|
//! | 3.12 and later | a digest and 40 random bytes | HMAC with the digest of the challenge, which is `sha256` | always allowed |
//! | 2.7 to 3.11 | 20 random bytes | HMAC-MD5 without a name, 16 bytes | [`Server::allow_legacy_md5`], [`Client::allow_legacy_md5`] |
//! | up to 3.11 with the FIPS patch of RHEL, e.g. the system Python 3.6 and 3.9 of RHEL, CentOS and other rebuilds | 20 random bytes | HMAC-SHA-256 without a name, 32 bytes | [`Server::allow_legacy_sha256`], [`Client::allow_legacy_sha256`] |
//!
//! Nothing is negotiated: a challenge names a digest, and the answer must use it. Challenges of this crate always name
//! `sha256`. As an answer to a challenge of the peer it computes `sha256`, `sha384`, `sha3_256` and `sha3_384`. To set
//! other digests, e.g. to add `md5`, use [`Server::digests`] and [`Client::digests`].
//!
//! A server can allow both legacy dialects: it tells them apart by the length of the answer, and answers the client's
//! challenge of 20 bytes in the dialect of that answer. A client cannot tell them apart. If it allows both, it answers a
//! challenge of 20 bytes with HMAC-SHA-256.
//!
//! With either of them, the challenges of this crate remain the same. A challenge of 20 bytes would make newer versions
//! of CPython fall back to MD5.
//!
//! # What it proves, and what it does not
//!
//! Each side proves that it holds the key, or that it relays the messages of a party that does. No message has a key
//! id, so the server tries all keys of its ring, as in [`one_way`](crate::one_way#several-keys).
//!
//! - The stream after the handshake is not protected. Python programs mostly send pickles, so **a peer that is accepted
//!   can run code on the other side.**
//! - A rogue server chooses the bytes that the client's key signs. **Never use a key of this mechanism for anything
//!   else.**
//! - CPython's MAC does not cover the role of its sender. A rogue server without the key can forward a client's
//!   challenge to a client on another connection, and return that client's answer. **CPython's own clients are
//!   vulnerable to this attack.**
//!
//! The clients of this crate do not answer the challenges of each other, on one host or on many. Of the 40 random
//! bytes in such a challenge, the second half is a mark: the HMAC of the first half, under a key that is derived for
//! this purpose alone. A client of this crate does not answer a challenge with this mark. **CPython's clients answer
//! any challenge**: if one of them has the same key and can be made to connect to the rogue server too, it answers
//! the challenge, and the client of this crate is deceived as well. Use a key for Rust clients that no Python client
//! has, or keep rogue servers off the channel.
//!
//! # Example
//!
//! ```
//! use futures::{SinkExt as _, StreamExt as _};
//! use tower_challenge::multiprocessing::{self, MessageCodec};
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let authkey = Key::new("secret password")?;
//! let entry = KeyEntry::new("workers", authkey.clone())?;
//! let keys = multiprocessing::KeyRing::new([entry])?;
//! let acceptor = Acceptor::new(multiprocessing::Server::new(keys));
//! let connector = Connector::new(multiprocessing::Client::new(&authkey));
//!
//! let (client_io, server_io) = tokio::io::duplex(64);
//! let (accepted, connected) =
//!     tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
//! let mut server = accepted?.into_framed(MessageCodec::new());
//! let mut client = connected?.into_framed(MessageCodec::new());
//! client.send("hello").await?;
//! assert_eq!(&server.next().await.unwrap()?[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! The client in Python, to a server on a TCP port:
//!
//! ```python
//! from multiprocessing.connection import Client
//!
//! with Client(("127.0.0.1", 8888), authkey=b"secret password") as connection:
//!     connection.send_bytes(b"hello")
//! ```
//!
//! Python's `authkey` is the key itself, in bytes. A [`KeyFile`](crate::KeyFile) has the same bytes in hexadecimal.

mod challenge;
mod client;
mod codec;
mod digest;
mod key;
mod message_codec;
mod server;

pub use self::client::{Client, ServerPeer};
pub use self::digest::Digest;
pub use self::key::PreparedKey;
pub use self::message_codec::{MessageCodec, MessageTooLong};
pub use self::server::Server;

/// A [`KeyRing`](crate::KeyRing) for this mechanism.
pub type KeyRing<A = ()> = crate::key::KeyRing<PreparedKey, A>;
