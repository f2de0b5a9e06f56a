use std::net::SocketAddr;

/// What a request handler can learn of its connection: what the peer has proven, and where it came from.
///
/// In axum it is an extractor, and what axum's own `ConnectInfo<PeerInfo<P>>` extracts. In tonic it is among the
/// extensions of a request: `request.extensions().get::<PeerInfo<P>>()`. As cheap to clone as its parts; the peers of
/// this crate's mechanisms are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerInfo<P, A = SocketAddr> {
    /// What the peer has proven: who it is, in most mechanisms.
    pub peer: P,
    /// Where the connection came from, as `accept` said.
    pub addr: A,
}

impl<P, A> PeerInfo<P, A> {
    /// What an adapter makes of a connection, and what the test of a handler makes up.
    pub const fn new(peer: P, addr: A) -> Self {
        Self { peer, addr }
    }
}
