//! The Selfie attack (RFC 9257, section 4.1): a host that is client and server under one key is connected to itself.
#![cfg(feature = "mutual")]

use tokio::io::duplex;
use tower_challenge::HandshakeErrorKind::Refused;
use tower_challenge::mutual::{Audience, Client, KeyRing, Server};
use tower_challenge::{Acceptor, Connector, Key, KeyEntry};

/// A host that is a server with the audience `own`, and dials other hosts.
struct Host {
    own: Audience,
    entry: KeyEntry,
}

impl Host {
    fn new(own: Audience, key: &Key) -> Self {
        Self { own, entry: KeyEntry::new("cluster", key.clone()).unwrap() }
    }

    fn server(&self) -> Acceptor<Server<KeyRing>> {
        Acceptor::new(Server::new(KeyRing::new([self.entry.clone()]).unwrap(), self.own.clone()))
    }

    fn client(&self, audience: Audience) -> Client {
        Client::new("cluster", self.entry.key(), audience).unwrap()
    }
}

fn audience(name: &str) -> Audience {
    Audience::new(name).unwrap()
}

/// With one audience for all replicas, the handshake alone cannot tell that a host is connected to itself.
#[tokio::test]
async fn replicas_of_one_audience_accept_themselves() {
    let host = Host::new(audience("orders"), &Key::generate().unwrap());
    let (client, server) = duplex(64);
    let connector = Connector::new(host.client(audience("orders")));
    let acceptor = host.server();
    let (accepted, connected) = tokio::join!(acceptor.accept(server), connector.connect(client));
    assert!(accepted.is_ok() && connected.is_ok());
}

#[test]
fn client_that_serves_as_an_audience_does_not_dial_it() {
    let host = Host::new(audience("orders"), &Key::generate().unwrap());
    let error = host.client(audience("orders")).serving_as(&host.own).unwrap_err();
    assert_eq!(error.audience, host.own);
    let text = error.to_string();
    assert!(text.contains("\"orders\"") && text.contains("an audience of its own"), "{text}");
    assert_eq!(format!("{error:?}"), text);

    let unspecified = Audience::unspecified();
    host.client(unspecified.clone()).serving_as(&unspecified).unwrap_err();
    host.client(unspecified.clone()).serving_as(&host.own).unwrap();
    host.client(audience("orders")).serving_as(&unspecified).unwrap();
    host.client(audience("orders/2")).serving_as(&host.own).unwrap();
}

/// With an audience for each host, a host that is connected to itself is refused.
#[tokio::test]
async fn hosts_with_audiences_of_their_own_do_not_accept_themselves() {
    let key = Key::generate().unwrap();
    let hosts = ["orders/1", "orders/2"].map(|name| Host::new(audience(name), &key));
    let client = hosts[0].client(hosts[1].own.clone()).serving_as(&hosts[0].own).unwrap();
    let connector = Connector::new(client);
    for (host, is_accepted) in [(&hosts[0], false), (&hosts[1], true)] {
        let (client, server) = duplex(64);
        let acceptor = host.server();
        let (accepted, connected) = tokio::join!(acceptor.accept(server), connector.connect(client));
        assert_eq!((accepted.is_ok(), connected.is_ok()), (is_accepted, is_accepted));
        if !is_accepted {
            assert_eq!((accepted.unwrap_err().kind(), connected.unwrap_err().kind()), (Refused, Refused));
        }
    }
}
