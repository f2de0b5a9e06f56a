//! An encrypted stream with forward secrecy from one shared key.
//!
//! Like [`mutual`](crate::mutual), each side proves that it holds the key. But here everything after the handshake is
//! encrypted and authenticated, and a key that is stolen later opens no recording. Use it over a network without TLS;
//! inside TLS, `mutual` with channel binding is enough. It is the pattern `NNpsk0` of the [Noise protocol
//! framework](https://noiseprotocol.org/noise.html) (revision 34) with X25519, SHA-256 and AES-256-GCM or
//! ChaCha20-Poly1305; the cryptography is that of aws-lc-rs.
//!
//! ```text
//!              client                                             server
//!
//! 1. HELLO       │   ┌───┬───────┬───┬─────────┬────────────────┐   │
//!                │ ──┤ 1 │ suite │ n │ key id  │ Noise message 1├─▶ │
//!                │   └─1─┴───1───┴─1─┴─1..=255─┴───────48───────┘   │
//! 2. ANSWER      │   ┌───┬─────────────────┐      ┌───┐             │
//!                │ ◀─┤ 1 │ Noise message 2 ├─ or ─┤ 0 ├──────────── │
//!                │   └─1─┴───────48────────┘      └─1─┘             │
//! 3. FINISH      │   ┌─────────────────────┐                        │
//!                │ ──┤ the first record    ├──────────────────────▶ │
//!                │   └─────────17──────────┘                        │
//!    then records in both directions
//!
//!  every message and every record has a length of two bytes in front,
//!  big-endian: at most 1024 for messages, 17 to 65,535 for records
//! ```
//!
//! - The key is never used itself: the PSK is HKDF-SHA-256 of it, with the salt `"tower-challenge noise v1"` and the info
//!   `"psk"`.
//! - The prologue has the protocol's name, the suite, the key id, the audience, and the type and data of the channel
//!   binding, each with its length (but for the suite). So the two sides agree on all of them.
//! - A record is a Noise transport message whose plaintext is a type (0 FINISH, 1 DATA, 2 CLOSE) and data. Records that
//!   are sent have at most 16 KiB. Before every 2^20th record a direction is rekeyed.
//!
//! # What it proves and what it does not
//!
//! - The server calls its service after FINISH. HELLO alone can be a replay; it costs the server one key generation and
//!   one Diffie-Hellman. Without the key, a HELLO costs some HMACs and a failed decryption.
//! - The client sends nothing before it has verified the server. That the server has accepted *it* is proven by the first
//!   record that it reads.
//! - **Whoever holds the key can be either side.** A thief of the key can impersonate the server to the client and the
//!   client to the server from then on; earlier sessions stay secret. Only keys of its own for each host would prevent
//!   that.
//! - **The key id is visible** on the wire, as in TLS with pre-shared keys (RFC 9257), and so are the lengths and times of
//!   records.
//! - **Keys must be random**, such as those of [`Key::generate`](crate::Key::generate): HELLO lets an observer test
//!   guesses.
//! - The refusal is not authenticated.
//! - `mutual` and `noise` may share a key, since each derives its own keys from it. `one_way` and `multiprocessing` share
//!   theirs with no other mechanism.
//!
//! # Close the stream
//!
//! **Call `shutdown().await` when everything is sent.** Only that tells the peer that nothing is missing. A stream that is
//! dropped ends for its peer with `UnexpectedEof`, as does one that was cut: see [`NoiseStream`].
//!
//! # Example
//!
//! ```
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tower_challenge::noise::{self, Audience};
//! use tower_challenge::{Acceptor, Connector, Key, KeyEntry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let alice = KeyEntry::new("alice", Key::generate()?)?;
//! let client = noise::Client::from_entry(&alice, "orders")?;
//! let keys = noise::KeyRing::new([alice])?;
//! let server = noise::Server::new(keys, Audience::new("orders")?);
//!
//! let (near, far) = tokio::io::duplex(1024);
//! let acceptor = Acceptor::new(server);
//! let connector = Connector::new(client);
//! let (accepted, connected) =
//!     tokio::join!(acceptor.accept(far), connector.connect(near));
//! let (mut accepted, mut connected) = (accepted?, connected?);
//! assert_eq!(accepted.peer().identity().key_id(), &"alice");
//!
//! connected.write_all(b"secret").await?;
//! connected.shutdown().await?;
//! let mut received = Vec::new();
//! accepted.read_to_end(&mut received).await?;
//! assert_eq!(received, b"secret");
//! # Ok(())
//! # }
//! ```

mod cipher;
mod client;
mod exchange;
mod incoming;
mod key;
mod message;
mod record;
mod server;
#[cfg(all(test, target_os = "linux"))]
mod stack;
mod stream;
mod suite;
mod symmetric;
#[cfg(test)]
mod vectors;

pub use self::client::{Client, ServerPeer};
pub use self::key::PreparedKey;
pub use self::server::{Peer, Server};
pub use self::stream::NoiseStream;
pub use self::suite::Suite;
pub use crate::audience::{Audience, OwnAudience};

/// A [`KeyRing`](crate::KeyRing) for this mechanism.
pub type KeyRing<A = ()> = crate::key::KeyRing<PreparedKey, A>;
