//! What the handshake proves, and what it refuses.

use tokio::io::{AsyncReadExt as _, duplex};
use tower_challenge::noise::{self, Audience, Suite};
use tower_challenge::transport::{ChannelBinding, TransportInfo, WithInfo};
use tower_challenge::{Acceptor, Connector, HandshakeErrorKind, Key, RefusalReason};

use crate::support::{SUITES, audience, client, key, server, session};

#[tokio::test]
async fn both_sides_know_each_other_and_the_session() {
    for suite in SUITES {
        let (client, server) = session(1, suite).await;
        assert_eq!(server.peer().identity().key_id(), &"alice");
        assert_eq!(client.peer().handshake_hash(), server.peer().handshake_hash());
    }
    let ((first, _), (second, _)) =
        (session(64, Suite::Aes256Gcm).await, session(64, Suite::Aes256Gcm).await);
    assert_ne!(first.peer().handshake_hash(), second.peer().handshake_hash());
}

#[tokio::test]
async fn refusals_say_why_to_the_server_alone() {
    let other = Key::new([8; 32]).unwrap();
    let wrong = Audience::new("billing").unwrap();
    for (client, reason) in [
        (noise::Client::new("alice", &other, audience()).unwrap(), RefusalReason::ProofMismatch),
        (noise::Client::new("bob", &key(), audience()).unwrap(), RefusalReason::UnknownKeyId),
        (noise::Client::new("alice", &key(), wrong).unwrap(), RefusalReason::ProofMismatch),
        (noise::Client::new("alice", &key(), Audience::unspecified()).unwrap(), RefusalReason::ProofMismatch),
        (client().suite(Suite::ChaCha20Poly1305), RefusalReason::SuiteNotAllowed),
    ] {
        let (near, far) = duplex(1024);
        let acceptor = Acceptor::new(server().suites([Suite::Aes256Gcm]));
        let connector = Connector::new(client);
        let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(near));
        let (accepted, connected) = (accepted.unwrap_err(), connected.unwrap_err());
        assert_eq!((accepted.kind(), accepted.refusal_reason()), (HandshakeErrorKind::Refused, Some(reason)));
        assert_eq!((connected.kind(), connected.refusal_reason()), (HandshakeErrorKind::Refused, None));
    }
}

/// A mechanism within the stream is bound to this session.
#[tokio::test]
async fn channel_binding_is_that_of_the_session() {
    let (client, server) = session(4096, Suite::Aes256Gcm).await;
    let binding = TransportInfo::from_stream(&client).channel_binding.unwrap();
    assert_eq!(binding.data(), client.peer().handshake_hash());
    assert_eq!(TransportInfo::from_stream(&server).channel_binding, Some(binding));
}

fn bound<IO>(io: IO, binding: Option<(&'static str, &str)>) -> WithInfo<IO> {
    let mut info = TransportInfo::new();
    info.channel_binding = binding.map(|(kind, data)| ChannelBinding::new(kind, data).unwrap());
    WithInfo::new(io, info)
}

#[tokio::test]
async fn both_sides_must_have_the_same_channel_binding() {
    const CHANNEL: Option<(&str, &str)> = Some(("tls-exporter", "channel"));
    for (of_server, of_client) in [
        (CHANNEL, CHANNEL),
        (None, None),
        (CHANNEL, Some(("tls-exporter", "another"))),
        (CHANNEL, Some(("tls-unique", "channel"))),
        // The same bytes, if the fields had no lengths.
        (CHANNEL, Some(("tls-exporterc", "hannel"))),
        (CHANNEL, None),
        (None, CHANNEL),
    ] {
        let ((near, far), acceptor) = (duplex(1024), Acceptor::new(server()));
        let connector = Connector::new(client());
        let (accepted, connected) =
            tokio::join!(acceptor.accept(bound(far, of_server)), connector.connect(bound(near, of_client)));
        let (accepted, connected) = (accepted.map(drop), connected.map(drop));
        if of_server == of_client {
            accepted.unwrap();
            connected.unwrap();
        } else {
            assert_eq!(accepted.unwrap_err().refusal_reason(), Some(RefusalReason::ProofMismatch));
            assert_eq!(connected.unwrap_err().kind(), HandshakeErrorKind::Refused);
        }
    }
}

#[tokio::test]
async fn missing_required_channel_binding_fails_before_anything_is_sent() {
    let (mut peer, io) = duplex(64);
    let accepted = Acceptor::new(server().require_channel_binding()).accept(io).await;
    assert_eq!(accepted.unwrap_err().kind(), HandshakeErrorKind::ChannelBinding);
    assert_eq!(peer.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let (mut peer, io) = duplex(64);
    let connected = Connector::new(client().require_channel_binding()).connect(io).await;
    assert_eq!(connected.unwrap_err().kind(), HandshakeErrorKind::ChannelBinding);
    assert_eq!(peer.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

/// For TLS that ends at a proxy: the two sides see different channels.
#[tokio::test]
async fn channel_binding_can_be_ignored() {
    let (near, far) = duplex(64);
    let acceptor = Acceptor::new(server().dangerous_ignore_channel_binding());
    let connector = Connector::new(client().dangerous_ignore_channel_binding());
    let near = bound(near, Some(("tls-exporter", "up to the proxy")));
    let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(near));
    accepted.unwrap();
    connected.unwrap();
}
