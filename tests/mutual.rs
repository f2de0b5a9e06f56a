//! The mutual wire: all vectors in both roles, the bytes of a refusal, and attacks that must not lead to acceptance.
#![cfg(feature = "mutual")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::HandshakeErrorKind::{
    ChannelBinding as NoChannelBinding, KeySource, Malformed, Probe, Refused, ServerNotAuthenticated,
    UnexpectedEof,
};
use tower_challenge::mechanism::{Context, Mechanism, Start};
use tower_challenge::mutual::{Audience, Client, KeyRing, Peer, PreparedKey, Server, ServerPeer};
use tower_challenge::transport::{ChannelBinding, TransportInfo, WithInfo};
use tower_challenge::{
    Acceptor, Connector, DerivedKeys, HandshakeError, HandshakeErrorKind, Identity, Key, KeyEntry, KeyError,
    KeyStore,
};

use crate::support::read_array;

#[derive(Deserialize)]
struct Vector {
    name: String,
    key: String,
    key_id: String,
    audience: String,
    binding_type: String,
    binding: String,
    server_nonce: String,
    client_nonce: String,
    challenge_frame: String,
    proof_frame: String,
    accepted_frame: String,
    refused_frame: String,
    #[serde(rename = "export(label='test',context='ctx',48)")]
    export: String,
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// A mechanism that uses the nonce of a vector.
struct WithNonce<M>(M, Vec<u8>);

impl<M: Mechanism> Mechanism for WithNonce<M> {
    type Role = M::Role;
    type Handshake = M::Handshake;

    const NAME: &'static str = M::NAME;

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<M::Handshake>, HandshakeError> {
        let mut nonce = |out: &mut [u8]| {
            out.copy_from_slice(&self.1);
            Ok(())
        };
        self.0.start(&mut Context::with_random(&mut nonce).channel(cx.channel_binding().cloned()))
    }
}

impl Vector {
    fn all() -> Vec<Self> {
        serde_json::from_str(include_str!("vectors/mutual.json")).unwrap()
    }

    fn audience(&self) -> Audience {
        match hex(&self.audience) {
            name if name.is_empty() => Audience::unspecified(),
            name => Audience::new(name).unwrap(),
        }
    }

    fn info(&self) -> TransportInfo {
        match self.binding_type.as_str() {
            "" => TransportInfo::new(),
            kind => {
                assert_eq!(hex(kind), b"tls-exporter");
                let binding = ChannelBinding::new("tls-exporter", hex(&self.binding)).unwrap();
                TransportInfo::new().channel_binding(binding)
            }
        }
    }

    fn client_side(&self) -> Client {
        let key = Key::from_hex(&self.key).unwrap();
        Client::new(&hex(&self.key_id)[..], &key, self.audience()).unwrap()
    }

    /// Runs the server with the nonce and the channel binding of this vector.
    async fn accept(&self, io: DuplexStream) -> Result<Stream<Peer>, HandshakeError> {
        let key = Key::from_hex(&self.key).unwrap();
        let ring = KeyRing::new([KeyEntry::new(&hex(&self.key_id)[..], key).unwrap()]).unwrap();
        let server = WithNonce(Server::new(ring, self.audience()), hex(&self.server_nonce));
        Acceptor::new(server).accept(WithInfo::new(io, self.info())).await
    }

    /// Runs the client with the nonce and the channel binding of this vector.
    async fn connect(&self, io: DuplexStream) -> Result<Stream<ServerPeer>, HandshakeError> {
        let client = WithNonce(self.client_side(), hex(&self.client_nonce));
        Connector::new(client).connect(WithInfo::new(io, self.info())).await
    }
}

type Stream<P> = tower_challenge::Authenticated<WithInfo<DuplexStream>, P>;

#[tokio::test]
async fn vectors_in_both_roles() {
    for vector in Vector::all() {
        let (mut client, server) = duplex(1024);
        client.write_all(&hex(&vector.proof_frame)).await.unwrap();
        let stream = vector.accept(server).await.unwrap();
        let mut sent = vec![0; 35 + 35];
        client.read_exact(&mut sent).await.unwrap();
        let expected = [hex(&vector.challenge_frame), hex(&vector.accepted_frame)].concat();
        assert_eq!(sent, expected, "{}", vector.name);
        assert_eq!(stream.peer().identity().key_id().as_bytes(), hex(&vector.key_id));
        let mut export = [0; 48];
        stream.peer().export_keying_material(b"test", b"ctx", &mut export).unwrap();
        assert_eq!(export.as_slice(), hex(&vector.export), "{}", vector.name);

        let (client, mut server) = duplex(1024);
        server.write_all(&hex(&vector.challenge_frame)).await.unwrap();
        server.write_all(&hex(&vector.accepted_frame)).await.unwrap();
        let stream = vector.connect(client).await.unwrap();
        let mut sent = vec![0; vector.proof_frame.len() / 2];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent, hex(&vector.proof_frame), "{}", vector.name);
        let mut export = [0; 48];
        stream.peer().export_keying_material(b"test", b"ctx", &mut export).unwrap();
        assert_eq!(export.as_slice(), hex(&vector.export), "{}", vector.name);
    }
}

/// Sends `proof` to the server. Returns everything that it sends after its challenge, and its outcome.
async fn send_to_server(vector: &Vector, proof: &[u8]) -> (Vec<u8>, Result<(), HandshakeErrorKind>) {
    let (mut client, server) = duplex(2048);
    client.write_all(proof).await.unwrap();
    client.shutdown().await.unwrap();
    let outcome = vector.accept(server).await.map(drop).map_err(|error| error.kind());
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent[..35], hex(&vector.challenge_frame));
    (sent[35..].to_vec(), outcome)
}

/// Sends `messages` to the client and returns its outcome.
async fn send_to_client(vector: &Vector, messages: &[u8]) -> Result<(), HandshakeErrorKind> {
    let (client, mut server) = duplex(2048);
    server.write_all(messages).await.unwrap();
    server.shutdown().await.unwrap();
    vector.connect(client).await.map(drop).map_err(|error| error.kind())
}

fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

#[tokio::test]
async fn messages_with_a_flipped_bit_are_never_accepted() {
    for vector in Vector::all() {
        let proof = hex(&vector.proof_frame);
        for (bit, flipped) in flips(&proof).enumerate() {
            let (sent, outcome) = send_to_server(&vector, &flipped).await;
            // A length beyond the limit or beyond the end of the stream is invalid framing: closed without an answer.
            match outcome.unwrap_err() {
                Refused => assert_eq!(sent, hex(&vector.refused_frame)),
                UnexpectedEof | Malformed if bit < 16 => assert_eq!(sent, b""),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
        let (challenge, accepted) = (hex(&vector.challenge_frame), hex(&vector.accepted_frame));
        for flipped in flips(&challenge) {
            send_to_client(&vector, &[flipped, accepted.clone()].concat()).await.unwrap_err();
        }
        for flipped in flips(&accepted) {
            send_to_client(&vector, &[challenge.clone(), flipped].concat()).await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn messages_cut_extended_reordered_or_reflected_are_never_accepted() {
    let vector = &Vector::all()[1];
    let [challenge, proof, accepted, refused] =
        [&vector.challenge_frame, &vector.proof_frame, &vector.accepted_frame, &vector.refused_frame]
            .map(|frame| hex(frame));
    let framed =
        |content: &[u8]| [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat();

    for len in 0..proof.len() {
        let (sent, outcome) = send_to_server(vector, &proof[..len]).await;
        let kind = if len == 0 { Probe } else { UnexpectedEof };
        assert_eq!((sent, outcome), (vec![], Err(kind)), "cut to {len}");
        if len >= 2 {
            // The frame is complete, its content cut short.
            let (sent, outcome) = send_to_server(vector, &framed(&proof[2..len])).await;
            assert_eq!((sent, outcome), (refused.clone(), Err(Refused)), "cut to {len}, framed");
        }
    }
    for extra in [1, 100, 1024 - (proof.len() - 2)] {
        let longer = [&proof[2..], &vec![0; extra]].concat();
        let (sent, outcome) = send_to_server(vector, &framed(&longer)).await;
        assert_eq!((sent, outcome), (refused.clone(), Err(Refused)));
    }
    let (sent, outcome) = send_to_server(vector, &framed(&[0; 1025])).await;
    assert_eq!((sent, outcome), (vec![], Err(Malformed)));
    // None of the server's own messages is a proof.
    for reflected in [&challenge, &accepted, &refused] {
        let (sent, outcome) = send_to_server(vector, reflected).await;
        assert_eq!((sent, outcome), (refused.clone(), Err(Refused)));
    }

    for wrong in [
        [accepted.clone(), challenge.clone()],
        [challenge.clone(), challenge.clone()],
        [challenge.clone(), proof.clone()],
        [refused.clone(), accepted.clone()],
        [challenge.clone(), framed(&accepted[2..34])],
        [challenge.clone(), framed(&[&accepted[2..], b"x"].concat())],
        [challenge.clone(), framed(&[0, 0])],
        [challenge.clone(), framed(b"")],
        [framed(&challenge[2..34]), accepted.clone()],
        [framed(&[&challenge[2..], b"x"].concat()), accepted.clone()],
    ] {
        assert!(send_to_client(vector, &wrong.concat()).await.is_err());
    }
    assert_eq!(send_to_client(vector, &[challenge, refused].concat()).await, Err(Refused));
}

fn key(text: &str) -> Key {
    Key::new(format!("a key of sixteen bytes and more: {text}")).unwrap()
}

fn ring(entries: &[(&str, &str)]) -> KeyRing {
    KeyRing::new(entries.iter().map(|(id, text)| KeyEntry::new(*id, key(text)).unwrap())).unwrap()
}

fn audience(name: &str) -> Audience {
    Audience::new(name).unwrap()
}

/// Wraps `io` in a stream that reports this channel binding, if there is one.
fn bound<IO>(io: IO, binding: Option<&str>) -> WithInfo<IO> {
    let mut info = TransportInfo::new();
    info.channel_binding = binding.map(|data| ChannelBinding::new("tls-exporter", data).unwrap());
    WithInfo::new(io, info)
}

/// A stream that records all bytes that are read.
struct Recorded<IO>(IO, Arc<std::sync::Mutex<Vec<u8>>>);

impl<IO: AsyncRead + Unpin> AsyncRead for Recorded<IO> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = std::pin::Pin::new(&mut self.0).poll_read(cx, buf);
        self.1.lock().unwrap().extend_from_slice(&buf.filled()[before..]);
        poll
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Recorded<IO> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A wrong key, an unknown id, another audience, another binding, and a binding on one side only.
#[tokio::test]
async fn refusals_have_the_same_bytes_whatever_the_reason() {
    let server = Server::new(ring(&[("alice", "a"), ("bob", "b")]), audience("orders"));
    for (id, text, name, client_binding, server_binding) in [
        ("alice", "b", "orders", None, None),
        ("eve", "a", "orders", None, None),
        ("alice", "a", "billing", None, None),
        ("alice", "a", "orders", Some("one"), Some("two")),
        ("alice", "a", "orders", Some("one"), None),
        ("alice", "a", "orders", None, Some("two")),
    ] {
        let client = Client::new(id, &key(text), audience(name)).unwrap();
        let (client_io, server_io) = duplex(64);
        let received = Arc::default();
        let client_io = Recorded(client_io, Arc::clone(&received));
        let (connector, acceptor) = (Connector::new(client), Acceptor::new(server.clone()));
        let (accepted, connected) = tokio::join!(
            acceptor.accept(bound(server_io, server_binding)),
            connector.connect(bound(client_io, client_binding))
        );
        assert_eq!(accepted.unwrap_err().kind(), Refused);
        assert_eq!(connected.map(drop).unwrap_err().kind(), Refused);
        assert_eq!(received.lock().unwrap()[35..], [0, 1, 0], "nothing else before the close");
    }
}

/// Runs a handshake over a pipe of one byte and returns the server's outcome.
async fn shake<S>(server: &Server<S>, client: &Client) -> Result<Peer<S::Metadata>, HandshakeErrorKind>
where
    S: tower_challenge::key::KeySource<PreparedKey>,
{
    let (client_io, server_io) = duplex(1);
    let (acceptor, connector) = (Acceptor::new(server.clone()), Connector::new(client.clone()));
    let (accepted, connected) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
    let accepted = accepted.map(|stream| stream.peer().clone()).map_err(|error| error.kind());
    // A key that is revoked at the end of the handshake fails it after the client has received its verdict.
    if accepted.as_ref().err() != Some(&HandshakeErrorKind::Revoked) {
        assert_eq!(accepted.is_ok(), connected.is_ok());
    }
    accepted
}

#[tokio::test]
async fn one_byte_at_a_time_followed_by_data() {
    let server = Acceptor::new(Server::new(ring(&[("alice", "a")]), audience("orders")));
    let client = Connector::new(Client::new("alice", &key("a"), audience("orders")).unwrap());
    let (client_io, server_io) = duplex(1);
    let server = async {
        let stream = server.accept(server_io).await.unwrap();
        let (read, write) = tokio::io::split(stream);
        exchange(read, write, "hello").await
    };
    let client = async {
        let stream = client.connect(client_io).await.unwrap();
        let (read, write) = tokio::io::split(stream);
        exchange(read, write, "world").await
    };
    assert_eq!(tokio::join!(server, client), ("world".to_owned(), "hello".to_owned()));
}

/// Reads five bytes while `text` is written.
async fn exchange(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    text: &str,
) -> String {
    let (received, written) = tokio::join!(read_array::<5>(&mut read), write.write_all(text.as_bytes()));
    written.unwrap();
    String::from_utf8(received.to_vec()).unwrap()
}

/// The server replays an accepting verdict of an earlier handshake.
#[tokio::test]
async fn client_rejects_a_server_without_the_key() {
    for vector in Vector::all() {
        let accepted = hex(&vector.accepted_frame);
        let (client, mut server) = duplex(1024);
        server.write_all(&hex(&vector.challenge_frame)).await.unwrap();
        server.write_all(&accepted).await.unwrap();
        // The same client with a fresh nonce.
        let connector = Connector::new(vector.client_side());
        let error = connector.connect(WithInfo::new(client, vector.info())).await.unwrap_err();
        assert_eq!(error.kind(), ServerNotAuthenticated);
    }
}

#[tokio::test]
async fn replayed_proof_is_refused() {
    let vector = &Vector::all()[0];
    let key = Key::from_hex(&vector.key).unwrap();
    let ring = KeyRing::new([KeyEntry::new("k1", key).unwrap()]).unwrap();
    let (mut client, server) = duplex(1024);
    client.write_all(&hex(&vector.proof_frame)).await.unwrap();
    client.shutdown().await.unwrap();
    let acceptor = Acceptor::new(Server::new(ring, Audience::unspecified()));
    assert_eq!(acceptor.accept(server).await.unwrap_err().kind(), Refused);
}

/// A host that is client and server under one key connects to itself.
#[tokio::test]
async fn selfie_is_refused_unless_the_audience_is_the_same() {
    for (of_client, of_server, accepted) in [("b", "a", false), ("a", "a", true)] {
        let server = Server::new(ring(&[("shared", "key")]), audience(of_server));
        let client = Client::new("shared", &key("key"), audience(of_client)).unwrap();
        assert_eq!(shake(&server, &client).await.is_ok(), accepted);
    }
}

#[tokio::test]
async fn id_has_up_to_four_keys() {
    let texts = ["1", "2", "3", "4"];
    let entries: Vec<_> = texts.iter().map(|text| ("alice", *text)).collect();
    let server = Server::new(ring(&entries), audience("orders"));
    for text in texts {
        let client = Client::new("alice", &key(text), audience("orders")).unwrap();
        shake(&server, &client).await.unwrap();
    }
    let five = [&entries[..], &[("alice", "5")]].concat();
    let error =
        KeyRing::new(five.iter().map(|(id, text)| KeyEntry::new(*id, key(text)).unwrap())).unwrap_err();
    assert!(matches!(error, KeyError::TooManyKeysOfId { max: 4, .. }));
}

#[tokio::test]
async fn short_key_is_a_configuration_error_from_every_source() {
    let short = || Key::new("fifteen bytes..").unwrap();
    let entry = || KeyEntry::new("alice", short()).unwrap();
    assert!(matches!(Client::new("alice", &short(), audience("a")), Err(KeyError::Unsuitable(_))));
    let is_unsuitable = |error| matches!(error, KeyError::UnsuitableKeyOfId { id, .. } if id == "alice");
    assert!(is_unsuitable(KeyRing::new([entry()]).unwrap_err()));
    let good = ring(&[("alice", "a")]);
    assert!(is_unsuitable(good.replace([entry()]).unwrap_err()));

    let store = KeyStore::new(move |_| {
        let entry = entry();
        async move { Ok::<_, io::Error>([entry]) }
    });
    let server = Server::new(store, audience("a"));
    let client = Client::new("alice", &key("a"), audience("a")).unwrap();
    assert_eq!(shake(&server, &client).await.unwrap_err(), KeySource, "the peer is not at fault");
}

/// A key of another id, or more keys than the mechanism tries, is a failure of the store and not of the peer.
#[tokio::test]
async fn invalid_result_of_a_store_is_an_error_of_the_key_source() {
    let client = Client::new("bob", &key("shared"), audience("a")).unwrap();
    for (ids, found) in
        [(&["bob"][..], Ok(())), (&["admin", "bob"], Err(KeySource)), (&["bob"; 5], Err(KeySource))]
    {
        let store = KeyStore::new(move |_| async move {
            let entry = |id: &&'static str| KeyEntry::new(*id, key("shared")).unwrap();
            Ok::<_, io::Error>(ids.iter().map(entry).collect::<Vec<_>>())
        });
        assert_eq!(shake(&Server::new(store, audience("a")), &client).await.map(drop), found, "{ids:?}");
    }
}

/// For an unknown id the keys of another id are tried, so that the work is the same. A match must not be accepted.
#[tokio::test]
async fn keys_tried_for_unknown_ids_never_authenticate() {
    let server = Server::new(ring(&[("alice", "a")]), audience("orders"));
    for id in ["bob", "eve", "mallory", "Alice", "alice "] {
        let client = Client::new(id, &key("a"), audience("orders")).unwrap();
        assert_eq!(shake(&server, &client).await.unwrap_err(), Refused, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn asynchronous_key_store() {
    let broken = Arc::new(AtomicBool::new(false));
    let store = KeyStore::new({
        let broken = Arc::clone(&broken);
        move |id: tower_challenge::KeyId| {
            let broken = broken.load(Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                match id.as_bytes() {
                    _ if broken => Err("the database is gone"),
                    b"alice" => Ok(vec![KeyEntry::new(id, key("a")).unwrap().with_metadata("Alice")]),
                    _ => Ok(vec![]),
                }
            }
        }
    });
    let server = Server::new(store, audience("orders"));
    let client = |id, text| Client::new(id, &key(text), audience("orders")).unwrap();
    let peer = shake(&server, &client("alice", "a")).await.unwrap();
    assert_eq!(*peer.identity().metadata(), "Alice");
    assert_eq!(shake(&server, &client("alice", "b")).await.unwrap_err(), Refused);
    assert_eq!(shake(&server, &client("eve", "a")).await.unwrap_err(), Refused);
    broken.store(true, Ordering::Relaxed);
    assert_eq!(shake(&server, &client("alice", "a")).await.unwrap_err(), KeySource);
}

#[tokio::test]
async fn derived_keys() {
    let short = Key::new("fifteen bytes..").unwrap();
    assert!(matches!(DerivedKeys::derive(&short, &"d1".parse().unwrap()), Err(KeyError::Unsuitable(_))));
    assert!(matches!(DerivedKeys::new(&short, |_: &[u8]| Some(())), Err(KeyError::Unsuitable(_))));
    let master = key("master");
    let keys = DerivedKeys::new(&master, |id: &[u8]| (id != b"revoked").then_some("device")).unwrap();
    let server = Server::new(keys, audience("fleet"));
    for (id, key_of, accepted) in
        [("d1", "d1", true), ("d2", "d2", true), ("d1", "d2", false), ("revoked", "revoked", false)]
    {
        let key = DerivedKeys::derive(&master, &key_of.parse().unwrap()).unwrap();
        let client = Client::new(id, &key, audience("fleet")).unwrap();
        assert_eq!(shake(&server, &client).await.map(drop), if accepted { Ok(()) } else { Err(Refused) });
    }
}

#[tokio::test]
async fn missing_required_channel_binding_fails_before_anything_is_sent() {
    let server = Server::new(ring(&[("alice", "a")]), audience("orders")).require_channel_binding();
    let client = Client::new("alice", &key("a"), audience("orders")).unwrap().require_channel_binding();

    let (mut peer, io) = duplex(64);
    let error = Acceptor::new(server.clone()).accept(io).await.unwrap_err();
    assert_eq!(error.kind(), NoChannelBinding);
    assert_eq!(peer.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let (mut peer, io) = duplex(64);
    let error = Connector::new(client.clone()).connect(io).await.unwrap_err();
    assert_eq!(error.kind(), NoChannelBinding);
    assert_eq!(peer.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert!(ChannelBinding::new("tls-exporter", "").is_err(), "a binding cannot be empty");
    assert!(ChannelBinding::new("", "data").is_err());

    let (client_io, server_io) = duplex(64);
    let (acceptor, connector) = (Acceptor::new(server), Connector::new(client));
    let (accepted, connected) = tokio::join!(
        acceptor.accept(bound(server_io, Some("channel"))),
        connector.connect(bound(client_io, Some("channel")))
    );
    accepted.unwrap();
    connected.unwrap();
}

/// For TLS that ends at a proxy: the two sides see different channels.
#[tokio::test]
async fn channel_binding_can_be_ignored() {
    let server = Server::new(ring(&[("alice", "a")]), audience("orders")).dangerous_ignore_channel_binding();
    let client = Client::new("alice", &key("a"), audience("orders")).unwrap();
    let (client_io, server_io) = duplex(64);
    let acceptor = Acceptor::new(server);
    let connector = Connector::new(client.dangerous_ignore_channel_binding());
    let (accepted, connected) = tokio::join!(
        acceptor.accept(server_io),
        connector.connect(bound(client_io, Some("up to the proxy")))
    );
    accepted.unwrap();
    connected.unwrap();
}

#[tokio::test]
async fn exported_keying_material_is_bound_to_handshake_label_and_context() {
    let server = Server::new(ring(&[("alice", "a")]), audience("orders"));
    let client = Client::new("alice", &key("a"), audience("orders")).unwrap();
    let (one, two) = (shake(&server, &client).await.unwrap(), shake(&server, &client).await.unwrap());
    let export = |peer: &Peer, label: &[u8], context: &[u8]| {
        let mut out = [0; 32];
        peer.export_keying_material(label, context, &mut out).unwrap();
        out
    };
    let all = [
        export(&one, b"label", b"context"),
        export(&two, b"label", b"context"),
        export(&one, b"labe", b"lcontext"),
        export(&one, b"label", b""),
    ];
    for (at, this) in all.iter().enumerate() {
        assert!(!all[at + 1..].contains(this));
    }
    one.export_keying_material(b"", b"", &mut [0; 8160]).unwrap();
    one.export_keying_material(b"", b"", &mut [0; 8161]).unwrap_err();
    one.export_keying_material(&vec![0; 65536], b"", &mut [0]).unwrap_err();
    assert!(!format!("{one:?}").contains("0x"));
}

/// Every 10 ms a new key replaces the older of two, while handshakes run. No legitimate client is refused, and a key
/// that was removed is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotation_under_load() {
    let ring = ring(&[("alice", "0")]);
    let server = Server::new(ring.clone(), audience("orders"));
    // The last rotation that has begun, and the last that has completed.
    let (begun, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (server, begun, over) = (server.clone(), Arc::clone(&begun), Arc::clone(&over));
        let stop = Arc::clone(&stop);
        load.spawn(async move {
            let mut accepted = 0;
            while !stop.load(Ordering::SeqCst) {
                let newest = over.load(Ordering::SeqCst);
                match shake(&server, &client_of(newest)).await {
                    Ok(_) => accepted += 1,
                    // The key was the newest at the start, and the next rotation keeps it. Only the second removes it.
                    Err(_) => {
                        assert!(begun.load(Ordering::SeqCst) >= newest + 2, "key {newest} is refused");
                    }
                }
                tokio::task::yield_now().await;
            }
            accepted
        });
    }
    for rotation in 1..=100_usize {
        let texts = [rotation - 1, rotation].map(|text| text.to_string());
        begun.store(rotation, Ordering::SeqCst);
        ring.replace(texts.iter().map(|text| KeyEntry::new("alice", key(text)).unwrap())).unwrap();
        over.store(rotation, Ordering::SeqCst);
        if rotation > 1 {
            assert_eq!(shake(&server, &client_of(rotation - 2)).await.unwrap_err(), Refused);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let accepted: usize = load.join_all().await.into_iter().sum();
    assert!(accepted > 100, "{accepted} handshakes");
}

fn client_of(text: usize) -> Client {
    Client::new("alice", &key(&text.to_string()), audience("orders")).unwrap()
}

/// A lookup takes as long in a ring of a million keys as in a ring of one. Compares the best of several rounds, with a
/// bound that only a linear search would exceed.
#[test]
fn lookup_time_does_not_depend_on_the_size_of_the_ring() {
    use tower_challenge::key::{KeyRing, KeySource as _, PrepareKey};

    struct Unprepared;

    impl PrepareKey for Unprepared {
        fn prepare(_: &Key) -> Result<Self, KeyError> {
            Ok(Self)
        }
    }

    let ring = |count: usize| -> KeyRing<Unprepared> {
        KeyRing::new((0..count).map(|id| KeyEntry::new(id.to_string(), Key::new("k").unwrap()).unwrap()))
            .unwrap()
    };
    let best = |ring: &KeyRing<Unprepared>, ids: usize| {
        let ids: Vec<_> = (0..1000).map(|i| (i * 7919 % ids).to_string()).collect();
        let lookup = || {
            let begin = std::time::Instant::now();
            for id in &ids {
                assert_eq!(ring.look_up(id.as_bytes()).into_inner().unwrap().iter().count(), 1);
            }
            begin.elapsed()
        };
        (0..20).map(|_| lookup()).min().unwrap()
    };
    let (one, million) = (best(&ring(1), 1), best(&ring(1_000_000), 1_000_000));
    assert!(
        million < one * 20,
        "{one:?} for a thousand lookups in a ring of one, {million:?} in a ring of a million"
    );
}

/// Peers for the unit tests of handlers have the identity that the test chose, and export random bytes.
#[test]
fn peer_without_handshake_exports_random_keying_material() {
    let identity = || Identity::new("alice".parse().unwrap(), 7_u8);
    let export = |peer: &Peer<u8>| {
        let mut out = [0; 32];
        peer.export_keying_material(b"label", b"", &mut out).unwrap();
        out
    };
    let peer = Peer::without_handshake(identity());
    assert_eq!((peer.identity().key_id(), peer.identity().metadata()), (&"alice".parse().unwrap(), &7));
    assert_eq!(export(&peer), export(&peer.clone()));
    assert_ne!(export(&peer), export(&Peer::without_handshake(identity())));
    let mut out = [0; 32];
    ServerPeer::without_handshake().export_keying_material(b"label", b"", &mut out).unwrap();
    assert_ne!(out, export(&peer));
}
