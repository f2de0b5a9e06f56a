//! This crate.

use tokio::net::TcpStream;
use tower_challenge::mechanism::{Client, Mechanism, Server};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Acceptor, Connector, KeyEntry, KeyRing, one_way};

use crate::way::{Key, Result, Way, be_greeted, greet};

pub(crate) struct Ours<S, C> {
    acceptor: Acceptor<S>,
    connector: Connector<C>,
}

impl<S, C> Clone for Ours<S, C> {
    fn clone(&self) -> Self {
        Self { acceptor: self.acceptor.clone(), connector: self.connector.clone() }
    }
}

pub(crate) fn one_way(key: &Key) -> Ours<one_way::Server, one_way::Client> {
    let key = tower_challenge::Key::new(key).expect("a key");
    let keys = KeyRing::new([KeyEntry::new("k", key.clone()).expect("an id")]).expect("keys");
    Ours {
        acceptor: Acceptor::new(one_way::Server::new(keys)),
        connector: Connector::new(one_way::Client::new(&key)),
    }
}

pub(crate) fn mutual(key: &Key) -> Ours<mutual::Server<KeyRing<mutual::PreparedKey>>, mutual::Client> {
    let key = tower_challenge::Key::new(key).expect("a key");
    let keys = KeyRing::new([KeyEntry::new("k", key.clone()).expect("an id")]).expect("keys");
    let audience = Audience::new("orders").expect("a name");
    Ours {
        acceptor: Acceptor::new(mutual::Server::new(keys, audience.clone())),
        connector: Connector::new(mutual::Client::new("k", &key, audience).expect("a key")),
    }
}

impl<S, C> Way for Ours<S, C>
where
    S: Mechanism<Role = Server> + 'static,
    C: Mechanism<Role = Client> + 'static,
{
    async fn accept(self, io: TcpStream) -> Result<()> {
        greet(self.acceptor.accept(io).await?).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        be_greeted(self.connector.connect(io).await?).await
    }
}
