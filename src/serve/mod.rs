//! The accept loop: spawns a task for each accepted connection and calls a service with it.
//!
//! [`serve`](serve()) takes any service of [`Connection`]s. Most often that is the service of a
//! [`ChallengeLayer`](crate::ChallengeLayer), alone or inside other layers. If a framework has its own accept loop, use
//! [`Incoming`](crate::Incoming) instead.
//!
//! ```no_run
//! use tokio::io::AsyncWriteExt as _;
//! use tokio::net::{TcpListener, TcpStream};
//! use tokio::signal;
//! use tower::ServiceBuilder;
//! use tower_challenge::mutual::{self, Audience};
//! use tower_challenge::{
//!     Authenticated, ChallengeLayer, Connection, KeyFile, serve,
//! };
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let keys = mutual::KeyRing::new(KeyFile::new("keys").read()?)?;
//!     let server = mutual::Server::new(keys, Audience::new("orders")?);
//!     let service = ServiceBuilder::new()
//!         .layer(ChallengeLayer::new(server))
//!         .service_fn(handler);
//!
//!     let listener = TcpListener::bind("127.0.0.1:8888").await?;
//!     let shutdown = serve(listener, service)
//!         .graceful_shutdown(shutdown_signal())
//!         .on_error(|error| eprintln!("{error}"))
//!         .await?;
//!     println!("sessions that were aborted: {}", shutdown.aborted);
//!     Ok(())
//! }
//!
//! async fn handler(
//!     mut stream: Authenticated<Connection<TcpStream>, mutual::Peer>,
//! ) -> std::io::Result<()> {
//!     let key_id = stream.peer().identity().key_id();
//!     let addr = stream.get_ref().addr();
//!     let greeting = format!("hello {key_id} from {addr}\n");
//!     stream.write_all(greeting.as_bytes()).await
//! }
//!
//! /// Completes on Ctrl-C or SIGTERM.
//! async fn shutdown_signal() {
//!     let ctrl_c = async {
//!         signal::ctrl_c().await.expect("failed to install handler");
//!     };
//!
//!     #[cfg(unix)]
//!     let terminate = async {
//!         signal::unix::signal(signal::unix::SignalKind::terminate())
//!             .expect("failed to install handler")
//!             .recv()
//!             .await;
//!     };
//!     #[cfg(not(unix))]
//!     let terminate = std::future::pending::<()>();
//!
//!     tokio::select! {
//!         () = ctrl_c => {}
//!         () = terminate => {}
//!     }
//! }
//! ```
//!
//! # Coming from `socketserver`
//!
//! The counterparts of Python's `socketserver.ThreadingTCPServer`:
//!
//! | `socketserver` | this crate |
//! |---|---|
//! | `RequestHandlerClass`, `handle` | the inner service, which is called with an [`Authenticated`](crate::Authenticated) stream |
//! | `setup`, `finish` | the beginning and the end of the handler, and `Drop` |
//! | `client_address` | [`Connection::addr`] |
//! | `ThreadingMixIn`: a thread for each connection | a task for each connection |
//! | `serve_forever` | `serve(..).await` |
//! | `shutdown`, `server_close` | [`Serve::graceful_shutdown`], which closes the listener first |
//! | `block_on_close`, `daemon_threads` | [`Serve::shutdown_timeout`]: how long sessions may continue |
//! | `verify_request` | the handshake; to filter by address, a layer around it, such as tower's `filter` |
//! | `handle_error` | [`Serve::on_error`], which receives errors and panics of the handler |
//! | `timeout`, `handle_timeout` | [`ChallengeLayer::timeout`](crate::ChallengeLayer::timeout) for the handshake; tower's `timeout` for the whole connection |
//! | `request_queue_size` | the backlog of the listener: `TcpSocket::listen` |
//! | `allow_reuse_address` | set by `TcpListener::bind` on Unix |
//! | `max_children` (`ForkingMixIn`) | [`Serve::max_connections`]; for sessions alone, tower's `concurrency_limit` around the inner service |

mod callback;
mod connection;
mod error;
mod listen;
mod panic;
mod permits;
mod run;
mod session;
mod settings;
mod shutdown;

pub(crate) use self::callback::ErrorCallback;
pub use self::connection::Connection;
pub use self::error::ServeError;
pub use self::run::{Serve, serve};
pub(crate) use self::settings::Settings;
pub use self::shutdown::Shutdown;
