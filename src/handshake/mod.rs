//! The driver: runs a mechanism on a stream within one deadline.
//!
//! [`Accept`] and [`Connect`] are the futures of [`Acceptor::accept`](crate::Acceptor::accept) and
//! [`Connector::connect`](crate::Connector::connect). They are named so that you can put them into types of your own.

mod accept;
mod connect;
mod drive;
mod exchange;
mod first_bytes;

pub use self::accept::Accept;
pub use self::connect::Connect;
