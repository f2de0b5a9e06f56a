//! The accept loop: pushes each connection of a listener into a service, in a task of its own.
//!
//! [`serve`](serve()) knows nothing of handshakes. It is made for the service that a
//! [`ChallengeLayer`](crate::ChallengeLayer) makes, on its own or under more layers, but takes any service of
//! [`Connection`]s. Where a framework owns the loop and wants to pull connections, [`Incoming`](crate::Incoming) is
//! the other way in.
//!
//! ```no_run
//! use tokio::io::AsyncWriteExt as _;
//! use tokio::net::{TcpListener, TcpStream};
//! use tower::ServiceBuilder;
//! use tower_challenge::{
//!     Authenticated, ChallengeLayer, Connection, Identity, KeyFile, KeyRing, one_way, serve,
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let keys = KeyRing::new(KeyFile::new("keys").read()?)?;
//! let service = ServiceBuilder::new()
//!     .layer(ChallengeLayer::new(one_way::Server::new(keys)))
//!     .service_fn(|mut stream: Authenticated<Connection<TcpStream>, Identity>| async move {
//!         let greeting = format!("hello {} from {}", stream.peer().key_id(), stream.get_ref().addr());
//!         stream.write_all(greeting.as_bytes()).await
//!     });
//!
//! serve(TcpListener::bind("127.0.0.1:8888").await?, service)
//!     .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
//!     .on_error(|error| eprintln!("{error}"))
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Coming from `socketserver`
//!
//! What Python's `socketserver.ThreadingTCPServer` gives, and what stands for it here:
//!
//! | `socketserver` | here |
//! |---|---|
//! | `RequestHandlerClass`, `handle` | the inner service, called with an [`Authenticated`](crate::Authenticated) stream |
//! | `setup`, `finish` | the handler's own first and last lines, and `Drop` |
//! | `client_address` | [`Connection::addr`] |
//! | `ThreadingMixIn`, a thread a connection | a task a connection |
//! | `serve_forever` | `.await` of [`Serve`] |
//! | `shutdown`, `server_close` | [`Serve::with_graceful_shutdown`]; the listener is closed first |
//! | `block_on_close`, `daemon_threads` | [`Serve::shutdown_timeout`]: how long sessions may go on |
//! | `verify_request` | the handshake itself; by address, a layer above it, such as tower's `filter` |
//! | `handle_error` | [`Serve::on_error`], which gets the handler's errors and its panics |
//! | `timeout`, `handle_timeout` | [`ChallengeLayer::timeout`](crate::ChallengeLayer::timeout) for the handshake, tower's `timeout` for all of it |
//! | `request_queue_size` | the backlog of the listener: `TcpSocket::listen` |
//! | `allow_reuse_address` | `TcpListener::bind` sets it on Unix |
//! | `max_children` (`ForkingMixIn`) | [`Serve::max_connections`], or tower's `concurrency_limit` on the inner service for sessions alone |

mod connection;
mod error;
mod listen;
mod place;
mod run;
mod session;
mod settings;
mod shutdown;

pub use self::connection::Connection;
pub use self::error::ServeError;
pub(crate) use self::run::OnError;
pub use self::run::{Serve, serve};
pub(crate) use self::settings::Settings;
pub use self::shutdown::Shutdown;
