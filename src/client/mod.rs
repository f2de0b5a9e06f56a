//! The client's side as tower middleware: a handshake on every connection that a connector makes.
//!
//! A *connector*, in the terms of tower and hyper, is a `Service<Target>` whose response is a stream. [`AnswerLayer`]
//! makes it a connector whose streams have completed the handshake. Without tower, a
//! [`Connector`](crate::Connector) runs the handshake on a stream that is connected already.
//!
//! ```
//! use tokio::net::TcpStream;
//! use tower::{ServiceBuilder, ServiceExt as _};
//! use tower_challenge::{AnswerLayer, Key, one_way};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::new("This is key!")?;
//! let connector = ServiceBuilder::new()
//!     .layer(AnswerLayer::new(one_way::Client::new(&key)))
//!     .service_fn(TcpStream::connect::<&str>);
//!
//! let stream = connector.oneshot("127.0.0.1:8888").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A key for each target
//!
//! [`AnswerLayer::with_connector_fn`] takes a function from the target to a [`Connector`](crate::Connector), so that
//! each target can have its own key and its own deadline.
//!
//! ```
//! use std::collections::HashMap;
//!
//! use tokio::net::TcpStream;
//! use tower::ServiceBuilder;
//! use tower_challenge::{AnswerLayer, Connector, Key, one_way};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let orders = Connector::new(one_way::Client::new(&Key::generate()?));
//! let connectors = HashMap::from([("orders.example:8888", orders)]);
//!
//! let layer = AnswerLayer::with_connector_fn(move |target: &&'static str| {
//!     connectors.get(target).cloned().ok_or(format!("no key for {target}"))
//! });
//! let connector = ServiceBuilder::new()
//!     .layer(layer)
//!     .service_fn(TcpStream::connect::<&'static str>);
//! # Ok(())
//! # }
//! ```

mod choose;
mod error;
mod future;
mod layer;
mod service;

pub use self::error::ConnectError;
pub use self::future::ResponseFuture;
pub use self::layer::AnswerLayer;
pub use self::service::Answer;
