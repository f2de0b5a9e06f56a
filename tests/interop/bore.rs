//! The mechanism of the example `bore` with `bore-cli` as the peer, in both directions.

#[path = "../../examples/programs/bore.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has a `main`")]
mod example;

use bore_cli::auth::Authenticator;
use bore_cli::shared::Delimited;
use example::{Bore, BoreClient, BoreServer};
use tokio::io::{AsyncWriteExt as _, duplex};
use tower_challenge::{Acceptor, Connector, HandshakeErrorKind, Key};

fn bore(secret: &str) -> Bore {
    Bore::new(&Key::new(secret).unwrap())
}

#[tokio::test]
async fn accepts_client_of_bore_cli() {
    for (secret, accepted) in [("some secret string", true), ("another", false)] {
        let (client, server) = duplex(1);
        let authenticator = Authenticator::new(secret);
        let mut client = Delimited::new(client);
        let acceptor = Acceptor::new(BoreServer(bore("some secret string")));
        let (server, client) =
            tokio::join!(acceptor.accept(server), authenticator.client_handshake(&mut client));
        client.unwrap();
        match server {
            Ok(_) => assert!(accepted),
            Err(error) => assert_eq!((accepted, error.kind()), (false, HandshakeErrorKind::Refused)),
        }
    }
}

#[tokio::test]
async fn connects_to_server_of_bore_cli() {
    for (secret, accepted) in [("some secret string", true), ("another", false)] {
        let (client, server) = duplex(1);
        let authenticator = Authenticator::new("some secret string");
        let mut server = Delimited::new(server);
        let connector = Connector::new(BoreClient(bore(secret)));
        let (client, server) =
            tokio::join!(connector.connect(client), authenticator.server_handshake(&mut server));
        client.unwrap();
        assert_eq!(server.is_ok(), accepted);
    }
}

#[tokio::test]
async fn other_messages_are_malformed() {
    for bytes in [&b"{\"Hello\":0}\0"[..], b"\0", &[b'x'; 300]] {
        let (mut client, server) = duplex(1024);
        client.write_all(bytes).await.unwrap();
        let error = Acceptor::new(BoreServer(bore("secret"))).accept(server).await.unwrap_err();
        assert_eq!(error.kind(), HandshakeErrorKind::Malformed);
    }
}
