//! The driver: runs one mechanism over one stream, within one deadline.
//!
//! [`exchange`] is the handshake itself, message by message, without any clock; [`drive`] bounds it in time;
//! [`Accept`] and [`Connect`] are its two public faces.

mod accept;
mod connect;
mod drive;
mod exchange;

pub use self::accept::Accept;
pub use self::connect::Connect;
pub(crate) use self::drive::deadline_in;
