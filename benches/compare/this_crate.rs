//! The mechanisms `one_way`, `mutual` and `noise` of this crate.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower_challenge::mechanism::{ClientRole, Mechanism, ServerRole, StreamOf};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Acceptor, Connector, KeyEntry, noise, one_way};

use crate::way::{Key, Result, Way, be_greeted, greet};

pub(crate) struct ThisCrate<S, C> {
    acceptor: Acceptor<S>,
    connector: Connector<C>,
}

impl<S, C> Clone for ThisCrate<S, C> {
    fn clone(&self) -> Self {
        Self { acceptor: self.acceptor.clone(), connector: self.connector.clone() }
    }
}

fn entry(key: &Key) -> KeyEntry {
    let key = tower_challenge::Key::new(key).expect("a valid key");
    KeyEntry::new("k", key).expect("a valid id")
}

pub(crate) fn one_way(key: &Key) -> ThisCrate<one_way::Server, one_way::Client> {
    let entry = entry(key);
    let connector = Connector::new(one_way::Client::new(entry.key()));
    let keys = one_way::KeyRing::new([entry]).expect("valid keys");
    ThisCrate { acceptor: Acceptor::new(one_way::Server::new(keys)), connector }
}

pub(crate) fn mutual(key: &Key) -> ThisCrate<mutual::Server<mutual::KeyRing>, mutual::Client> {
    let entry = entry(key);
    let client = mutual::Client::from_entry(&entry, "orders").expect("a valid key");
    let keys = mutual::KeyRing::new([entry]).expect("valid keys");
    let audience = Audience::new("orders").expect("a valid audience");
    ThisCrate {
        acceptor: Acceptor::new(mutual::Server::new(keys, audience)),
        connector: Connector::new(client),
    }
}

pub(crate) fn noise(key: &Key) -> ThisCrate<noise::Server<noise::KeyRing>, noise::Client> {
    let entry = entry(key);
    let client = noise::Client::from_entry(&entry, "orders").expect("a valid key");
    let keys = noise::KeyRing::new([entry]).expect("valid keys");
    let audience = Audience::new("orders").expect("a valid audience");
    ThisCrate {
        acceptor: Acceptor::new(noise::Server::new(keys, audience)),
        connector: Connector::new(client),
    }
}

impl<S, C> Way for ThisCrate<S, C>
where
    S: Mechanism<Role = ServerRole> + 'static,
    C: Mechanism<Role = ClientRole> + 'static,
    StreamOf<S, TcpStream>: AsyncRead + AsyncWrite + Unpin,
    StreamOf<C, TcpStream>: AsyncRead + AsyncWrite + Unpin,
{
    async fn accept(self, io: TcpStream) -> Result<()> {
        greet(self.acceptor.accept(io).await?).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        be_greeted(self.connector.connect(io).await?).await
    }
}
