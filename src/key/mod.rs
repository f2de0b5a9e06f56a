//! Keys, their names, and where they come from.
//!
//! A [`Key`] is the secret itself. A [`KeyId`] names it, in clear. A [`KeyEntry`] is both, with whatever its owner
//! wants to know again when a peer proves that it holds the key. A [`KeyFile`] reads entries from a file, and a
//! [`KeyRing`] holds them for a server while it runs.
//!
//! ```
//! use tower_challenge::{Key, KeyEntry, KeyRing, one_way};
//!
//! let ring: KeyRing<one_way::PreparedKey, &str> = KeyRing::new([
//!     KeyEntry::new("alice", Key::generate()?)?.attach("administrator"),
//!     KeyEntry::new("bob", Key::generate()?)?.attach("guest"),
//! ])?;
//! let server = one_way::Server::new(ring.clone());
//!
//! // Later, while connections run: bob is gone, alice has an old key and a new one.
//! let (old, new) = (Key::generate()?, Key::generate()?);
//! ring.replace([
//!     KeyEntry::new("alice", old)?.attach("administrator"),
//!     KeyEntry::new("alice", new)?.attach("administrator"),
//! ])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod entry;
mod error;
mod file;
mod id;
mod ring;
mod secret;

pub use self::entry::{Identity, KeyEntry};
pub use self::error::KeyError;
pub use self::file::{KeyFile, KeyFileError, KeyFileErrorKind};
pub use self::id::KeyId;
pub use self::ring::{KeyRing, KeySnapshot, PrepareKey, RingKey};
pub use self::secret::Key;
