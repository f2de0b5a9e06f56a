//! The server's side as tower middleware: a handshake on every connection, before the inner service is called.
//!
//! [`ChallengeLayer`] wraps an inner `Service<Authenticated<IO, Peer>>`. The result is a `Service<IO>`, which is called
//! with new connections. There are three ways to use the handshake:
//!
//! - `serve` is an accept loop that calls the service with each connection of a listener.
//! - `Incoming` is a listener whose connections have completed the handshake, for frameworks with an accept loop of
//!   their own.
//! - [`Acceptor`](crate::Acceptor) runs the handshake on one stream, without tower.
//!
//! ```
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
//! use tower::{ServiceBuilder, ServiceExt as _};
//! use tower_challenge::{
//!     Authenticated, ChallengeLayer, Connector, Identity, Key, KeyEntry, one_way,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let entry = KeyEntry::new("alice", key.clone())?;
//! let keys = one_way::KeyRing::new([entry.with_metadata("administrator")])?;
//!
//! async fn handler(
//!     mut stream: Authenticated<DuplexStream, Identity<&'static str>>,
//! ) -> std::io::Result<()> {
//!     let greeting = format!("hello, {}", stream.peer().metadata());
//!     stream.write_all(greeting.as_bytes()).await
//! }
//! let service = ServiceBuilder::new()
//!     .layer(ChallengeLayer::new(one_way::Server::new(keys)))
//!     .service_fn(handler);
//!
//! let (client, server) = tokio::io::duplex(64);
//! let session = tokio::spawn(service.oneshot(server));
//! let connector = Connector::new(one_way::Client::new(&key));
//! let mut stream = connector.connect(client).await?;
//! let mut greeting = String::new();
//! stream.read_to_string(&mut greeting).await?;
//! assert_eq!(greeting, "hello, administrator");
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
