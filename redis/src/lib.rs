//! Keys, revocations and penalties of [`tower_challenge`], shared by many servers over Redis.
//!
//! - [`RedisKeys`] is a key source with all keys in memory, which follows a store in Redis. A revocation is in effect on
//!   every server within a second, sessions included.
//! - [`RedisPenalties`] tells the other servers which sources this one has throttled.
//! - [`Store`] changes the store, and the program `challenge-keys` does the same from the command line.
//!
//! **No handshake waits for Redis, and Redis is not trusted.** It holds no key in clear: keys are sealed with a secret
//! that only servers and managers have, or derived from it. What Redis loses, repeats or rolls back revives no revoked
//! key on a running server. A hostile Redis cannot admit a client; it can withhold changes, which
//! [`staleness`](RedisKeys::staleness) shows.
//!
//! The page [Many servers](https://docs.rs/crate/tower-challenge-redis/latest/source/docs/fleet.md) has the set-up and
//! what happens when Redis is slow, stopped, wiped or hostile.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod commit;
mod connect;
mod error;
mod feed;
mod keys;
mod layout;
pub mod names;
mod penalties;
mod pushes;
mod secret;
mod state;
mod status;
mod store;
mod tally;
mod value;

pub use self::error::Error;
pub use self::keys::{RedisKeys, RedisKeysBuilder};
pub use self::penalties::{PenaltyExchange, RedisPenalties};
pub use self::secret::StoreSecret;
pub use self::store::{ListedId, ServerStatus, Store};
pub use self::value::Form;
