use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// The address type of a listener: tells the IP address and port, if it has one.
///
/// [Admission control](crate::admission) limits sources by that address.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `PeerAddr`",
    label = "this address type does not tell its IP address",
    note = "if the type is yours and has no IP address: `impl tower_challenge::transport::PeerAddr for {Self} {{}}`",
    note = "for any other type: let the listener return a `SocketAddr`, or `()` if there is none"
)]
pub trait PeerAddr {
    /// Returns the IP address and port. The default is `None`.
    fn socket_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// Returns this address after a load balancer reported `addr` as that of the client. The default keeps it.
    #[must_use]
    fn with_socket_addr(self, _addr: SocketAddr) -> Self
    where
        Self: Sized,
    {
        self
    }
}

impl PeerAddr for SocketAddr {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some(*self)
    }

    fn with_socket_addr(self, addr: SocketAddr) -> Self {
        addr
    }
}

impl PeerAddr for SocketAddrV4 {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some((*self).into())
    }

    fn with_socket_addr(self, addr: SocketAddr) -> Self {
        if let SocketAddr::V4(addr) = addr { addr } else { self }
    }
}

impl PeerAddr for SocketAddrV6 {
    fn socket_addr(&self) -> Option<SocketAddr> {
        Some((*self).into())
    }

    fn with_socket_addr(self, addr: SocketAddr) -> Self {
        if let SocketAddr::V6(addr) = addr { addr } else { self }
    }
}

/// For listeners without addresses.
impl PeerAddr for () {}

#[cfg(all(feature = "net", unix))]
impl PeerAddr for tokio::net::unix::SocketAddr {}
