//! The driver: runs one mechanism over one stream, within one deadline.
//!
//! [`Accept`] and [`Connect`] are its two faces, the futures of [`Acceptor::accept`](crate::Acceptor::accept) and
//! [`Connector::connect`](crate::Connector::connect). `exchange` is the handshake itself, message by message, without
//! any clock; `drive` bounds it in time.

mod accept;
mod connect;
mod drive;
mod exchange;

pub use self::accept::Accept;
pub use self::connect::Connect;
