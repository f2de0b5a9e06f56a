//! [`PeerInfo`] in the extensions of each request that a tonic server gets.

use tonic::transport::server::Connected;

use crate::peer_info::PeerInfo;
#[cfg(feature = "net")]
use crate::serve::Connection;
use crate::stream::Authenticated;

/// The peer, and what the stream within says of itself: the address, for a `Connection`.
impl<IO, P> Connected for Authenticated<IO, P>
where
    IO: Connected,
    P: Clone + Send + Sync + 'static,
{
    type ConnectInfo = PeerInfo<P, IO::ConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        PeerInfo::new(self.peer().clone(), self.get_ref().connect_info())
    }
}

/// The address that it came from.
#[cfg(feature = "net")]
impl<IO, A> Connected for Connection<IO, A>
where
    A: Clone + Send + Sync + 'static,
{
    type ConnectInfo = A;

    fn connect_info(&self) -> A {
        self.addr().clone()
    }
}

/// The address in the PROXY protocol header, if there is one and the address type can hold it. Otherwise what the inner
/// stream reports.
#[cfg(feature = "proxy-protocol")]
impl<IO> Connected for crate::prepare::Proxied<IO>
where
    IO: Connected,
    IO::ConnectInfo: crate::transport::PeerAddr,
{
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        use crate::transport::PeerAddr as _;

        let info = self.get_ref().connect_info();
        match self.header().and_then(crate::prepare::ProxyHeader::source) {
            Some(source) => info.with_socket_addr(source),
            None => info,
        }
    }
}

/// What the transport reports.
#[cfg(feature = "noise")]
impl<IO: Connected> Connected for crate::noise::NoiseStream<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.get_ref().connect_info()
    }
}
