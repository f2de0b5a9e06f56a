//! Helpers shared by several tests.
#![allow(unreachable_pub, reason = "a module of a test binary")]

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::noise::{self, Audience, NoiseStream, Suite};
use tower_challenge::transport::Transport;
use tower_challenge::{Acceptor, Authenticated, Connector, Key, KeyEntry};

pub const LONG: Duration = Duration::from_secs(60);

pub const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

pub fn key() -> Key {
    Key::new([7; 32]).unwrap()
}

pub fn audience() -> Audience {
    Audience::new("orders").unwrap()
}

pub fn ring() -> noise::KeyRing {
    noise::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap()
}

pub fn server() -> noise::Server<noise::KeyRing> {
    noise::Server::new(ring(), audience())
}

pub fn client() -> noise::Client {
    noise::Client::new("alice", &key(), audience()).unwrap()
}

pub type Server<IO = DuplexStream> = Authenticated<NoiseStream<IO>, noise::Peer>;
pub type Client<IO = DuplexStream> = Authenticated<NoiseStream<IO>, noise::ServerPeer>;

/// A session over a pipe of this size.
pub async fn session(size: usize, suite: Suite) -> (Client, Server) {
    let (near, far) = duplex(size);
    session_over(near, far, suite).await
}

pub async fn session_over<C, S>(near: C, far: S, suite: Suite) -> (Client<C>, Server<S>)
where
    C: AsyncRead + AsyncWrite + Transport + Unpin,
    S: AsyncRead + AsyncWrite + Transport + Unpin,
{
    let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client().suite(suite)));
    let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(near));
    (client.unwrap(), server.unwrap())
}

/// A session whose two pipes end at an attacker. FINISH has been passed on, and nothing after it.
pub struct Relayed {
    pub client: Client,
    pub server: Server,
    /// The attacker's end of the client's pipe.
    pub near: DuplexStream,
    /// The attacker's end of the server's pipe.
    pub far: DuplexStream,
}

pub async fn relayed(server: noise::Server<noise::KeyRing>) -> Relayed {
    let ((client_io, mut near), (mut far, server_io)) = (duplex(4096), duplex(4096));
    let (acceptor, connector) = (Acceptor::new(server), Connector::new(client()));
    let relay = async {
        pass_on(&mut near, &mut far).await;
        pass_on(&mut far, &mut near).await;
        pass_on(&mut near, &mut far).await;
    };
    let (server, client, ()) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io), relay);
    Relayed { client: client.unwrap(), server: server.unwrap(), near, far }
}

/// Reads a message or a record, with its length.
pub async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let len = io.read_u16().await.unwrap();
    let mut frame = len.to_be_bytes().to_vec();
    frame.resize(2 + usize::from(len), 0);
    io.read_exact(&mut frame[2..]).await.unwrap();
    frame
}

/// Passes a message or a record on.
pub async fn pass_on(from: &mut DuplexStream, to: &mut DuplexStream) {
    let frame = read_frame(from).await;
    to.write_all(&frame).await.unwrap();
}

/// Bytes that differ from each other for long enough.
pub fn data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256 * 13 + at / 65_536).to_le_bytes()[0]).collect()
}
