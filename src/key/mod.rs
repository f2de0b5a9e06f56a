//! Keys, key ids, and the sources that a server finds keys in.
//!
//! - A [`Key`] is a shared secret, and a [`KeyId`] is its public name.
//! - A [`KeyEntry`] is a key with its id, and optionally with metadata that the server gets back when a peer
//!   authenticates with this key.
//! - A [`KeyFile`] reads entries from a file and reads it again when it changes.
//!
//! A server looks keys up in a [`KeySource`]:
//!
//! - [`KeyRing`] holds keys in memory. They can be replaced while the server runs.
//! - [`KeyStore`] calls an asynchronous function for each lookup, e.g. to query a database.
//! - `DerivedKeys` (feature `mutual`) derives the key of each id from one master key, for fleets.
//!
//! Mechanisms that do not send a key id need a `KeyRing`, and try all of its keys.
//!
//! This module defines which keys there are. A [mechanism](crate::mechanism) defines how a peer proves that it holds
//! one of them.
//!
//! ```
//! use tower_challenge::{Key, KeyEntry, one_way};
//!
//! let ring = one_way::KeyRing::new([
//!     KeyEntry::new("alice", Key::generate()?)?.with_metadata("administrator"),
//!     KeyEntry::new("bob", Key::generate()?)?.with_metadata("guest"),
//! ])?;
//! let server = one_way::Server::new(ring.clone());
//!
//! // Later, while connections run: remove bob, and rotate alice's key.
//! let (old, new) = (Key::generate()?, Key::generate()?);
//! ring.replace([
//!     KeyEntry::new("alice", old)?.with_metadata("administrator"),
//!     KeyEntry::new("alice", new)?.with_metadata("administrator"),
//! ])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "mutual")]
mod derived;
mod entry;
mod error;
mod file;
mod fingerprint;
mod id;
mod index;
mod prepare;
mod revocation;
mod ring;
mod secret;
mod source;
mod store;
mod watch;

#[cfg(feature = "mutual")]
pub use self::derived::DerivedKeys;
pub use self::entry::{Identity, KeyEntry};
pub use self::error::KeyError;
pub use self::file::{KeyFile, KeyFileError, KeyFileErrorKind};
pub use self::id::KeyId;
pub use self::prepare::PrepareKey;
pub use self::revocation::{Revocation, Revoker};
pub use self::ring::KeyRing;
pub use self::secret::Key;
pub use self::source::{KeySet, KeySource, RingKey};
pub use self::store::{KeyStore, StoreLookup};
pub use self::watch::ReloadError;
