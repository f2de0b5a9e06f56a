#![doc = include_str!("../docs/crate.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod admission;
pub mod client;
#[cfg(any(doc, doctest))]
pub mod guide;
pub mod handshake;
pub mod key;
pub mod mechanism;
#[cfg(feature = "multiprocessing")]
pub mod multiprocessing;
#[cfg(feature = "mutual")]
pub mod mutual;
#[cfg(feature = "noise")]
pub mod noise;
pub mod observe;
pub mod one_way;
pub mod prepare;
#[cfg(feature = "net")]
pub mod serve;
pub mod server;
pub mod transport;

mod acceptor;
mod adapters;
#[cfg(any(feature = "mutual", feature = "noise"))]
mod audience;
#[cfg(any(feature = "mutual", feature = "noise"))]
mod binding;
mod connector;
mod error;
#[cfg(any(feature = "mutual", feature = "noise"))]
mod frame;
#[cfg(feature = "net")]
pub mod incoming;
#[cfg(any(feature = "mutual", feature = "multiprocessing", feature = "noise"))]
mod kdf;
#[cfg(any(feature = "axum", feature = "tonic"))]
mod peer_info;
mod revoked_sessions;
mod stream;
mod time;

use std::time::Duration;

pub use self::acceptor::Acceptor;
#[cfg(feature = "axum")]
pub use self::adapters::axum::PeerInfoRejection;
#[cfg(feature = "hyper-util")]
pub use self::adapters::hyper_util::{HyperAnswer, HyperAnswerLayer};
#[doc(inline)]
pub use self::admission::Admission;
#[doc(inline)]
pub use self::client::{Answer, AnswerLayer, ConnectError};
pub use self::connector::Connector;
pub use self::error::{BoxError, ClaimedKeyId, HandshakeError, HandshakeErrorKind, RefusalReason};
#[cfg(feature = "net")]
#[doc(inline)]
pub use self::incoming::Incoming;
#[cfg(feature = "mutual")]
#[doc(inline)]
pub use self::key::DerivedKeys;
#[doc(inline)]
pub use self::key::{Identity, Key, KeyEntry, KeyError, KeyFile, KeyId, KeyRing, KeyStore};
#[cfg(any(feature = "axum", feature = "tonic"))]
pub use self::peer_info::PeerInfo;
#[cfg(feature = "net")]
#[doc(inline)]
pub use self::serve::{Connection, serve};
#[doc(inline)]
pub use self::server::{AcceptError, Challenge, ChallengeLayer};
pub use self::stream::{Authenticated, Parts};
#[doc(inline)]
pub use self::transport::Transport;

/// The default deadline of a handshake: 10 seconds.
///
/// Long enough for a client on a slow connection, and short enough that silent peers do not accumulate.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The code blocks of the README, as doctests.
#[cfg(all(doctest, feature = "mutual", feature = "net"))]
#[doc = include_str!("../README.md")]
struct Readme;
