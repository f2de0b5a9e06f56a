//! Details of errors: the reason of a refusal, which the peer must not learn, the protocol of a peer that uses another
//! one, and timeouts of silent peers.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::HandshakeErrorKind::{Probe, Refused, TimedOut, UnexpectedEof};
use tower_challenge::handshake::{Accept, Connect};
use tower_challenge::mechanism::{ClientRole, Mechanism, ServerRole};
use tower_challenge::{Acceptor, Connector, HandshakeError, RefusalReason, one_way};

use crate::support::{REFUSED, acceptor, answer_by_hand, connector, key, ring};

/// Plays the client: sends `bytes` and closes for writing. Returns everything that the server sends, and its error.
async fn error_of_server<M>(mechanism: M, bytes: &[u8]) -> (Vec<u8>, HandshakeError)
where
    M: Mechanism<Role = ServerRole>,
    Accept<DuplexStream, M>: Future<Output = Result<Accepted<M>, HandshakeError>>,
{
    let (mut client, server) = duplex(4096);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let error = Acceptor::new(mechanism).accept(server).await.map(drop).unwrap_err();
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.unwrap();
    (sent, error)
}

type Accepted<M> = tower_challenge::Authenticated<DuplexStream, tower_challenge::mechanism::PeerOf<M>>;

/// Plays the server: sends `bytes` and closes for writing. Returns the error of the client.
async fn error_of_client<M>(mechanism: M, bytes: &[u8]) -> HandshakeError
where
    M: Mechanism<Role = ClientRole>,
    Connect<DuplexStream, M>: Future<Output = Result<Accepted<M>, HandshakeError>>,
{
    let (client, mut server) = duplex(4096);
    server.write_all(bytes).await.unwrap();
    server.shutdown().await.unwrap();
    Connector::new(mechanism).connect(client).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn one_way_refusal_reason() {
    let (mut client, server) = duplex(64);
    let server = tokio::spawn(acceptor(&["right"]).accept(server));
    answer_by_hand(&mut client, "wrong").await;
    let mut verdict = String::new();
    client.read_to_string(&mut verdict).await.unwrap();
    assert_eq!(verdict, REFUSED);
    drop(client);
    let error = server.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(RefusalReason::NoMatchingKey)));
    assert!(error.claimed_key_id().is_none());
    assert_eq!(error.to_string(), "handshake refused: the answer matches none of the keys");
}

/// The client does not learn the reason.
#[tokio::test]
async fn client_has_no_refusal_reason() {
    let (client, server) = duplex(64);
    let (_, connected) =
        tokio::join!(acceptor(&["right"]).accept(server), connector("wrong").connect(client));
    let error = connected.unwrap_err();
    assert_eq!((error.kind(), error.refusal_reason()), (Refused, None));
    assert_eq!(error.to_string(), "handshake refused");
}

/// Every peer receives the refusing verdict of its mechanism, also if the first bytes name another protocol.
#[tokio::test]
async fn foreign_protocol_gets_the_same_verdict_from_one_way() {
    for (_, bytes) in FOREIGN {
        let (sent, error) = error_of_server(one_way::Server::new(ring(&["key"])), bytes).await;
        assert_eq!((error.kind(), &sent[32..]), (Refused, REFUSED.as_bytes()));
    }
}

#[cfg(feature = "mutual")]
mod mutual_refusals {
    use tower_challenge::mutual::{Audience, Client, KeyRing, Server};
    use tower_challenge::transport::{ChannelBinding, TransportInfo, WithInfo};
    use tower_challenge::{Key, KeyEntry};

    use super::*;

    const REFUSED: &[u8] = &[0, 1, 0];

    fn key(text: &str) -> Key {
        Key::new(format!("a key of sixteen bytes or more: {text}")).unwrap()
    }

    fn server() -> Server<KeyRing> {
        let entries = ["alice", "bob"].map(|id| KeyEntry::new(id, key(id)).unwrap());
        Server::new(KeyRing::new(entries).unwrap(), Audience::new("orders").unwrap())
    }

    fn bound(io: DuplexStream, binding: Option<&str>) -> WithInfo<DuplexStream> {
        let mut info = TransportInfo::new();
        info.channel_binding = binding.map(|data| ChannelBinding::new("tls-exporter", data).unwrap());
        WithInfo::new(io, info)
    }

    /// A client that is relayed byte by byte, so that all bytes that the server sends are known.
    async fn refusal(
        client: Client,
        of_client: Option<&str>,
        of_server: Option<&str>,
    ) -> (Vec<u8>, HandshakeError) {
        let ((client_io, mut near_client), (server_io, mut near_server)) = (duplex(1024), duplex(1024));
        let accept = Acceptor::new(server()).accept(bound(server_io, of_server));
        let connect = Connector::new(client).connect(bound(client_io, of_client));
        let relay = async {
            let mut sent = vec![0; 35];
            near_server.read_exact(&mut sent).await.unwrap();
            near_client.write_all(&sent).await.unwrap();
            let len = near_client.read_u16().await.unwrap();
            let mut proof = vec![0; len.into()];
            near_client.read_exact(&mut proof).await.unwrap();
            near_server.write_u16(len).await.unwrap();
            near_server.write_all(&proof).await.unwrap();
            let mut verdict = Vec::new();
            near_server.read_to_end(&mut verdict).await.unwrap();
            near_client.write_all(&verdict).await.unwrap();
            drop(near_server);
            verdict
        };
        let (accepted, connected, verdict) = tokio::join!(accept, connect, relay);
        let error = connected.unwrap_err();
        assert_eq!((error.kind(), error.refusal_reason()), (Refused, None));
        (verdict, accepted.unwrap_err())
    }

    #[tokio::test]
    async fn reasons_differ_and_bytes_do_not() {
        let client = |id: &str, of: &str, audience: &str| {
            Client::new(id, &key(of), Audience::new(audience).unwrap()).unwrap()
        };
        let mismatch = "the proof does not match: wrong key, audience or channel binding";
        for (case, client, of_client, of_server, reason, text) in [
            (
                "unknown key id",
                client("eve", "alice", "orders"),
                None,
                None,
                RefusalReason::UnknownKeyId,
                "unknown key id (claimed key id \"eve\")".to_owned(),
            ),
            (
                "wrong key",
                client("alice", "bob", "orders"),
                None,
                None,
                RefusalReason::ProofMismatch,
                format!("{mismatch} (claimed key id \"alice\")"),
            ),
            (
                "wrong audience",
                client("alice", "alice", "billing"),
                None,
                None,
                RefusalReason::ProofMismatch,
                format!("{mismatch} (claimed key id \"alice\")"),
            ),
            (
                "wrong channel binding",
                client("bob", "bob", "orders"),
                Some("one"),
                Some("two"),
                RefusalReason::ProofMismatch,
                format!("{mismatch} (claimed key id \"bob\")"),
            ),
            (
                "channel binding of the server only",
                client("bob", "bob", "orders"),
                None,
                Some("two"),
                RefusalReason::ProofMismatch,
                format!("{mismatch} (claimed key id \"bob\")"),
            ),
        ] {
            let (verdict, error) = refusal(client, of_client, of_server).await;
            assert_eq!(verdict, REFUSED, "{case}");
            assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(reason)), "{case}");
            assert_eq!(error.to_string(), format!("handshake refused: {text}"), "{case}");
        }
    }

    #[tokio::test]
    async fn malformed_proof_gets_the_same_bytes() {
        // An empty frame, one that is too short, and a proof whose id has another length than it says.
        let mut wrong_len = vec![0, 70, 5];
        wrong_len.resize(2 + 70, 1);
        for bytes in [&[0, 0][..], &[0, 3, 1, 2, 3], &wrong_len] {
            let (sent, error) = error_of_server(server(), bytes).await;
            assert_eq!(&sent[35..], REFUSED);
            let reason = Some(RefusalReason::MalformedProof);
            assert_eq!((error.kind(), error.refusal_reason()), (Refused, reason));
            assert!(error.claimed_key_id().is_none());
            assert!(error.to_string().contains("the proof is malformed"), "{error}");
        }
    }

    /// An unauthenticated peer chooses the id. It may be meant to corrupt the log, or be a key in the wrong place.
    #[tokio::test]
    async fn claimed_key_id_is_escaped_and_its_hex_digits_are_elided() {
        let id = b"eve\n0123456789abcdef0123456789abcdef";
        let (len, nonce, tag) = (u8::try_from(id.len()).unwrap(), [1; 32], [2; 32]);
        let proof = [&nonce[..], &[len], id, &tag].concat();
        let frame = [&u16::try_from(proof.len()).unwrap().to_be_bytes()[..], &proof].concat();
        let (sent, error) = error_of_server(server(), &frame).await;
        assert_eq!(&sent[35..], REFUSED);
        assert_eq!(error.refusal_reason(), Some(RefusalReason::UnknownKeyId));
        assert_eq!(error.claimed_key_id().unwrap().to_string(), "eve\\n[32 hex digits]");
        assert!(error.to_string().ends_with("(claimed key id \"eve\\n[32 hex digits]\")"), "{error}");
    }
}

#[cfg(feature = "multiprocessing")]
mod multiprocessing_refusals {
    use tower_challenge::multiprocessing::{KeyRing, Server};

    use super::*;
    use crate::support::{entries, hmac_md5};

    /// Answers the challenge, which has 48 bytes after its prefix, with the bytes that `answer` computes.
    async fn refusal(answer: impl FnOnce(&[u8]) -> Vec<u8>) -> (Vec<u8>, HandshakeError) {
        let (mut client, io) = duplex(1024);
        let server = Server::new(KeyRing::new(entries(&["key"])).unwrap());
        let server = tokio::spawn(Acceptor::new(server).accept(io));
        let len = client.read_u32().await.unwrap();
        let mut challenge = vec![0; len.try_into().unwrap()];
        client.read_exact(&mut challenge).await.unwrap();
        let answer = answer(challenge.strip_prefix(b"#CHALLENGE#").unwrap());
        client.write_u32(answer.len().try_into().unwrap()).await.unwrap();
        client.write_all(&answer).await.unwrap();
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.unwrap();
        drop(client);
        (sent, server.await.unwrap().unwrap_err())
    }

    #[tokio::test]
    async fn reasons_differ_and_bytes_do_not() {
        type Answer = fn(&[u8]) -> Vec<u8>;
        let cases: [(Answer, RefusalReason, &str); 4] = [
            (
                |_| [&b"{sha256}"[..], &[7; 32]].concat(),
                RefusalReason::NoMatchingKey,
                "the answer matches none of the keys",
            ),
            (
                |challenge| hmac_md5(b"key", challenge).to_vec(),
                RefusalReason::LegacyMd5,
                "Python 3.11 or older",
            ),
            (|_| b"{sha384}".to_vec(), RefusalReason::MalformedProof, "the proof is malformed"),
            (|_| Vec::new(), RefusalReason::MalformedProof, "the proof is malformed"),
        ];
        for (answer, reason, text) in cases {
            let (sent, error) = refusal(answer).await;
            assert_eq!(sent, b"\0\0\0\x09#FAILURE#", "{reason}");
            assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(reason)));
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}

/// The first bytes of other protocols. All are long enough for a codec to look at them.
const FOREIGN: [(&str, &[u8]); 6] = [
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and the rest of a ClientHello"),
    ("HTTP", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
    ("the PROXY protocol (version 1)", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
    (
        "the PROXY protocol (version 2)",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x12\x34\x01\xbb",
    ),
];

fn names_protocol(error: &HandshakeError, protocol: &str, mechanism: &str) {
    let expected = format!("the peer speaks {protocol}, this side `{mechanism}`");
    assert!(error.to_string().ends_with(&expected), "{protocol}: {error}");
}

/// For every mechanism, calls a macro with its name, a server and a client.
macro_rules! for_each_mechanism {
    ($callback:ident) => {
        $callback!("one_way", one_way::Server::new(ring(&["key"])), one_way::Client::new(&key("key")));
        #[cfg(feature = "mutual")]
        $callback!("mutual", mutual_server(), mutual_client());
        #[cfg(feature = "multiprocessing")]
        $callback!("multiprocessing", multiprocessing_server(), multiprocessing_client());
    };
}

#[cfg(feature = "mutual")]
fn mutual_server() -> tower_challenge::mutual::Server<tower_challenge::mutual::KeyRing> {
    use tower_challenge::mutual::{Audience, KeyRing, Server};
    let entries = crate::support::entries(&["0123456789abcdef"]);
    Server::new(KeyRing::new(entries).unwrap(), Audience::unspecified())
}

#[cfg(feature = "mutual")]
fn mutual_client() -> tower_challenge::mutual::Client {
    use tower_challenge::mutual::{Audience, Client};
    Client::new("k", &key("0123456789abcdef"), Audience::unspecified()).unwrap()
}

#[cfg(feature = "multiprocessing")]
fn multiprocessing_server() -> tower_challenge::multiprocessing::Server {
    use tower_challenge::multiprocessing::{KeyRing, Server};
    Server::new(KeyRing::new(crate::support::entries(&["key"])).unwrap())
}

#[cfg(feature = "multiprocessing")]
fn multiprocessing_client() -> tower_challenge::multiprocessing::Client {
    tower_challenge::multiprocessing::Client::new(&key("key"))
}

#[tokio::test]
async fn foreign_protocols_are_named_on_both_sides() {
    for (protocol, bytes) in FOREIGN {
        macro_rules! check {
            ($mechanism:literal, $server:expr, $client:expr) => {
                let (_, error) = error_of_server($server, bytes).await;
                names_protocol(&error, protocol, $mechanism);
                let error = error_of_client($client, bytes).await;
                names_protocol(&error, protocol, $mechanism);
            };
        }
        for_each_mechanism!(check);
    }
    macro_rules! check_response {
        ($mechanism:literal, $server:expr, $client:expr) => {
            let response = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
            names_protocol(&error_of_client($client, response).await, "HTTP", $mechanism);
        };
    }
    for_each_mechanism!(check_response);
}

/// A client names the mechanism of a server whose challenge it does not understand. Over TCP.
#[cfg(all(feature = "mutual", feature = "multiprocessing", feature = "net"))]
#[tokio::test]
async fn client_names_the_mechanism_of_the_server() {
    use tokio::net::{TcpListener, TcpStream};

    macro_rules! check {
        ($protocol:literal, $server:expr, [$(($mechanism:literal, $client:expr)),*]) => {$(
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            // Either side may wait for more bytes of the other.
            let timeout = Duration::from_millis(200);
            let accept = Acceptor::new($server).timeout(timeout).accept(listener.accept().await.unwrap().0);
            let (accepted, connected) =
                tokio::join!(accept, Connector::new($client).timeout(timeout).connect(io));
            accepted.unwrap_err();
            names_protocol(&connected.unwrap_err(), $protocol, $mechanism);
        )*};
    }
    check!(
        "the mechanism `mutual` of this crate",
        mutual_server(),
        [("one_way", one_way::Client::new(&key("key"))), ("multiprocessing", multiprocessing_client())]
    );
    check!(
        "Python's multiprocessing.connection",
        multiprocessing_server(),
        [("one_way", one_way::Client::new(&key("key"))), ("mutual", mutual_client())]
    );
}

/// A server names the mechanism of a client by its first message, if that can be recognized.
#[tokio::test]
async fn server_names_the_mechanism_of_the_client() {
    let answer = [&b"\0\0\0\x28{sha256}"[..], &[7; 32]].concat();
    let python = "Python's multiprocessing.connection";
    let (_, error) = error_of_server(one_way::Server::new(ring(&["key"])), &answer).await;
    names_protocol(&error, python, "one_way");
    #[cfg(feature = "mutual")]
    {
        let (_, error) = error_of_server(mutual_server(), &answer).await;
        names_protocol(&error, python, "mutual");
    }
}

/// Random bytes, such as a challenge or an answer of `one_way`, have no name.
#[cfg(feature = "mutual")]
#[tokio::test]
async fn unrecognized_first_message_gets_a_hint() {
    let (_, error) = error_of_server(mutual_server(), &[0xa5; 16]).await;
    assert!(error.to_string().ends_with("does the peer use another mechanism?"), "{error}");
    let error = error_of_client(mutual_client(), &[0xa5; 32]).await;
    assert!(error.to_string().ends_with("does the peer use another mechanism?"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn timeout_and_close_of_a_silent_peer_say_so() {
    let waiting = "the peer sent nothing; both sides may be waiting for the other to speak first";
    macro_rules! check {
        ($mechanism:literal, $server:expr, $client:expr) => {
            let (_silent, server) = duplex(256);
            let error = Acceptor::new($server).accept(server).await.map(drop).unwrap_err();
            assert_eq!(error.to_string(), format!("handshake timed out: {waiting}"), $mechanism);
            assert_eq!(error.kind(), TimedOut);
            let (client, _silent) = duplex(256);
            let error = Connector::new($client).connect(client).await.map(drop).unwrap_err();
            assert_eq!(error.to_string(), format!("handshake timed out: {waiting}"), $mechanism);
            assert_eq!(error.kind(), TimedOut);

            let closed = "connection closed before the peer sent anything";
            let (_, error) = error_of_server($server, b"").await;
            assert_eq!((error.kind(), error.to_string().as_str()), (Probe, closed), $mechanism);
            let error = error_of_client($client, b"").await;
            assert_eq!(error.kind(), UnexpectedEof, $mechanism);
            assert!(error.to_string().contains("the server sent nothing"), "{error}");
        };
    }
    for_each_mechanism!(check);
}

#[tokio::test(start_paused = true)]
async fn timeout_after_some_bytes_does_not_say_that_there_were_none() {
    let (mut client, server) = duplex(64);
    client.write_all(b"x").await.unwrap();
    let accept = acceptor(&["key"]).timeout(Duration::from_secs(1)).accept(server);
    assert_eq!(accept.await.unwrap_err().to_string(), "handshake timed out");
}
