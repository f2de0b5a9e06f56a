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
