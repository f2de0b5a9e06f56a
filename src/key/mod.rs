//! Keys, their names, and where they come from.
//!
//! A [`Key`] is the secret itself. A [`KeyId`] names it, in clear. A [`KeyEntry`] is both, with whatever its owner
//! wants to know again when a peer proves that it holds the key. A [`KeyFile`] reads entries from a file, and reads it
//! again when it changes.
//!
//! A server has its keys from a source, [`Keys`]: a [`KeyRing`] in memory, which can be replaced while it runs;
//! [`KeyStore`], which asks anything asynchronous; and, with the feature `mutual`, `DerivedKeys`, one secret for a
//! fleet. Mechanisms without ids try all keys of a ring.
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

#[cfg(feature = "mutual")]
mod derived;
mod entry;
mod error;
mod file;
mod follow;
mod id;
mod index;
mod prepare;
mod ring;
mod secret;
mod source;
mod store;

#[cfg(feature = "mutual")]
pub use self::derived::DerivedKeys;
pub use self::entry::{Identity, KeyEntry};
pub use self::error::KeyError;
pub use self::file::{KeyFile, KeyFileError, KeyFileErrorKind};
pub use self::follow::ReloadError;
pub use self::id::KeyId;
pub use self::prepare::PrepareKey;
pub use self::ring::KeyRing;
pub use self::secret::Key;
pub use self::source::{FoundKeys, Keys, LookupError, RingKey};
pub use self::store::{KeyStore, StoreLookup};
