// What the README refers to, for where no file lies beside the text: the first definition of a link counts.
#![doc = include_str!("../docs/img/inline.md")]
#![doc = include_str!("../docs/links.md")]
#![doc = include_str!("../README.md")]
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
pub mod observe;
#[cfg(feature = "net")]
pub mod serve;
pub mod server;
pub mod transport;

mod acceptor;
mod adapters;
mod connector;
mod error;
#[cfg(feature = "net")]
pub mod incoming;
#[cfg(any(feature = "mutual", feature = "multiprocessing"))]
mod kdf;
#[cfg(any(feature = "axum", feature = "tonic"))]
mod peer_info;
mod stream;
mod time;

use std::time::Duration;

#[doc(inline)]
pub use self::admission::Admission;
#[doc(inline)]
pub use self::client::{Answer, AnswerLayer, ConnectError};
#[cfg(feature = "net")]
#[doc(inline)]
pub use self::incoming::Incoming;
#[cfg(feature = "mutual")]
#[doc(inline)]
pub use self::key::DerivedKeys;
#[doc(inline)]
pub use self::key::{Identity, Key, KeyEntry, KeyError, KeyFile, KeyId, KeyRing, KeyStore};
#[cfg(feature = "multiprocessing")]
#[doc(inline)]
pub use self::mechanism::multiprocessing;
#[cfg(feature = "mutual")]
#[doc(inline)]
pub use self::mechanism::mutual;
#[doc(inline)]
pub use self::mechanism::one_way;
#[cfg(any(feature = "axum", feature = "tonic"))]
pub use self::peer_info::PeerInfo;
#[cfg(feature = "net")]
#[doc(inline)]
pub use self::serve::{Connection, serve};
#[doc(inline)]
pub use self::server::{AcceptError, Challenge, ChallengeLayer};
#[doc(inline)]
pub use self::transport::Transport;
pub use self::{
    acceptor::Acceptor,
    connector::Connector,
    error::{HandshakeError, HandshakeErrorKind},
    stream::{Authenticated, Parts},
};

/// How long a handshake may take unless told otherwise: 10 seconds.
///
/// Long enough for a client on a bad line, short enough that strangers who say nothing do not pile up.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
