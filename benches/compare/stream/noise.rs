//! The mechanism `noise` of this crate, with AES.

use tokio::net::TcpStream;
use tower_challenge::noise::{self, Audience, KeyRing, NoiseStream, Peer, ServerPeer};
use tower_challenge::{Acceptor, Admission, Authenticated, Connector, Key, KeyEntry};

use crate::way::{Result, Tokio, Way};

pub(crate) const ID: &str = "k";
pub(crate) const AUDIENCE: &str = "orders";

pub(crate) fn client(key: &[u8; 32]) -> noise::Client {
    let key = Key::new(key).expect("a valid key");
    noise::Client::new(ID, &key, audience()).expect("a valid client")
}

/// A server with these keys, all for one id.
pub(crate) fn server(keys: &[[u8; 32]]) -> noise::Server<KeyRing> {
    let entry = |key| KeyEntry::new(ID, Key::new(key).expect("a valid key")).expect("a valid id");
    noise::Server::new(KeyRing::new(keys.iter().map(entry)).expect("valid keys"), audience())
}

fn audience() -> Audience {
    Audience::new(AUDIENCE).expect("a valid audience")
}

const MAX: usize = 10_000;

pub(crate) type Accepted = Authenticated<NoiseStream<TcpStream>, Peer>;
pub(crate) type Connected = Authenticated<NoiseStream<TcpStream>, ServerPeer>;

#[derive(Clone)]
pub(crate) struct Noise {
    pub(crate) acceptor: Acceptor<noise::Server<KeyRing>>,
    pub(crate) connector: Connector<noise::Client>,
}

impl Noise {
    pub(crate) fn new() -> Self {
        let key = [7; 32];
        // For the memory of many pending handshakes from one address.
        let admission = Admission::builder().max_pending(MAX).max_per_source(MAX).build();
        let acceptor = Acceptor::new(server(&[key])).admission(admission.expect("valid limits"));
        Self { acceptor, connector: Connector::new(client(&key)) }
    }
}

impl Way for Noise {
    type Accepted = Tokio<Accepted>;
    type Connected = Tokio<Connected>;

    async fn accept(self, io: TcpStream) -> Result<Self::Accepted> {
        Ok(Tokio(self.acceptor.accept(io).await?))
    }

    async fn connect(self, io: TcpStream) -> Result<Self::Connected> {
        Ok(Tokio(self.connector.connect(io).await?))
    }
}
