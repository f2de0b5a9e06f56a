use std::net::SocketAddr;

/// What a request handler can learn about its connection: what the peer has proven, and its address.
///
/// - axum: an extractor, `async fn handler(peer: PeerInfo<mutual::Peer>)`. Serve with
///   `into_make_service_with_connect_info::<PeerInfo<mutual::Peer>>()`.
/// - tonic: an extension of each request, `request.extensions().get::<PeerInfo<mutual::Peer>>()`.
///
/// `P` is the peer type of the mechanism, including the type of the metadata: with keys that carry a `Role` it is
/// `mutual::Peer<Role>`. As cheap to clone as `P` and `A`; the peers of this crate's mechanisms are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerInfo<P, A = SocketAddr> {
    /// What the peer has proven: its identity, in most mechanisms.
    pub peer: P,
    /// The peer's address, as `accept` returned it, or as a [step](crate::prepare) such as a PROXY protocol header
    /// reported it.
    pub addr: A,
}

impl<P, A> PeerInfo<P, A> {
    /// Creates the information, as an adapter or the unit test of a handler does.
    pub const fn new(peer: P, addr: A) -> Self {
        Self { peer, addr }
    }
}
