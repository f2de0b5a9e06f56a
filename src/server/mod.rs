//! The server's side as tower middleware: a handshake in front of any service of streams.
//!
//! [`ChallengeLayer`] wraps an inner `Service<Authenticated<IO, Peer>>` into a `Service<IO>`: it is called with a fresh
//! connection, and calls the inner service once the peer has proven itself. [`Acceptor`](crate::Acceptor) is the same
//! without the inner service, `serve` brings the accept loop, `Incoming` is for loops that somebody else owns.
//!
//! ```
//! use std::convert::Infallible;
//!
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
//! use tower::{ServiceBuilder, ServiceExt as _, service_fn};
//! use tower_challenge::{
//!     Authenticated, ChallengeLayer, Connector, Identity, Key, KeyEntry, KeyRing, one_way,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?.attach("the administrator")])?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(ChallengeLayer::new(one_way::Server::new(keys)))
//!     .service_fn(|mut stream: Authenticated<DuplexStream, Identity<&'static str>>| async move {
//!         let greeting = format!("hello, {}", stream.peer().attached());
//!         stream.write_all(greeting.as_bytes()).await
//!     });
//!
//! let (client, server) = tokio::io::duplex(64);
//! let session = tokio::spawn(service.oneshot(server));
//! let mut stream = Connector::new(one_way::Client::new(&key)).connect(client).await?;
//! let mut greeting = String::new();
//! stream.read_to_string(&mut greeting).await?;
//! assert_eq!(greeting, "hello, the administrator");
//! session.await??;
//! # Ok(())
//! # }
//! ```

mod error;
mod future;
mod layer;
mod service;

pub use self::error::AcceptError;
pub use self::future::ResponseFuture;
pub use self::layer::ChallengeLayer;
pub use self::service::Challenge;
