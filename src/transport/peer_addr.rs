use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// An address as a listener's `accept` returns it.
///
/// For a `Connection` from a listener whose addresses are of somebody else's type,
/// [`Acceptor::inspect`](crate::Acceptor::inspect) says what is known instead.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say whether it is an IP address",
    label = "not a `PeerAddr`",
    note = "for an address of your own without one: `impl PeerAddr for {Self} {{}}`",
    note = "for any other: `.inspect(|_io: &Connection<_, {Self}>| TransportInfo::new())` on the layer or acceptor"
)]
pub trait PeerAddr {
    /// The address in the sense of IP, if it is one. `None` by default.
    fn socket_addr(&self) -> Option<SocketAddr> {
        None
    }
}

impl PeerAddr for SocketAddr {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some(*self)
    }
}

impl PeerAddr for SocketAddrV4 {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some((*self).into())
    }
}

impl PeerAddr for SocketAddrV6 {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some((*self).into())
    }
}

/// Of a listener that has nothing to say.
impl PeerAddr for () {}

#[cfg(all(feature = "net", unix))]
impl PeerAddr for tokio::net::unix::SocketAddr {}
