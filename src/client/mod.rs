//! The client's side as tower middleware: a handshake behind any connector.
//!
//! A *connector*, in tower's and hyper's terms, is a `Service<Target>` whose response is a stream. [`AnswerLayer`]
//! wraps one into a connector whose streams have answered the server's challenge. [`Connector`](crate::Connector) is
//! the same for a stream that is there already.
//!
//! ```
//! use tokio::net::TcpStream;
//! use tower::{ServiceBuilder, ServiceExt as _, service_fn};
//! use tower_challenge::{AnswerLayer, Key, one_way};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let connector = ServiceBuilder::new()
//!     .layer(AnswerLayer::new(one_way::Client::new(&Key::new("This is key!")?)))
//!     .service_fn(TcpStream::connect::<&'static str>);
//!
//! let stream = connector.oneshot("127.0.0.1:8888").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A key for each target
//!
//! [`AnswerLayer::by_target`] takes a function of the target instead. What it returns is a whole
//! [`Connector`](crate::Connector), so that the deadline and the other settings can differ too.
//!
//! ```
//! use std::collections::HashMap;
//!
//! use tokio::net::TcpStream;
//! use tower::{ServiceBuilder, service_fn};
//! use tower_challenge::{AnswerLayer, Connector, Key, one_way};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let orders = Connector::new(one_way::Client::new(&Key::generate()?));
//! let keys = HashMap::from([("orders.example:8888", orders)]);
//! let connector = ServiceBuilder::new()
//!     .layer(AnswerLayer::by_target(move |target: &&'static str| {
//!         keys.get(target).cloned().ok_or(format!("no key for {target}"))
//!     }))
//!     .service_fn(TcpStream::connect::<&'static str>);
//! # Ok(())
//! # }
//! ```

mod choose;
mod error;
mod future;
mod layer;
mod service;

pub use self::choose::{ByTarget, Choose};
pub use self::error::ConnectError;
pub use self::future::ResponseFuture;
pub use self::layer::AnswerLayer;
pub use self::service::Answer;
