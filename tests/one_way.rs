//! The classic wire in both roles, byte by byte: messages that are accepted, messages that are not, and the errors.

use std::time::Duration;

use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::yield_now;
use tower_challenge::HandshakeErrorKind::{Malformed, Random, Refused, UnexpectedEof};
use tower_challenge::mechanism::{Context, Mechanism, PeerOf, Start};
use tower_challenge::{
    Acceptor, Authenticated, Connector, HandshakeError, Identity, Key, KeyEntry, KeyRing, one_way,
};

use crate::support::{
    ACCEPTED, REFUSED, acceptor, answer_by_hand, connector, entries, hmac_md5, key, read_array, read_verdict,
    ring,
};

type Accepted = Result<Authenticated<DuplexStream, Identity>, HandshakeError>;

/// Starts a server and returns the client's end of its connection.
fn serve_one(keys: &[&str], buffer: usize) -> (DuplexStream, tokio::task::JoinHandle<Accepted>) {
    let (client, server) = duplex(buffer);
    (client, tokio::spawn(acceptor(keys).accept(server)))
}

#[tokio::test]
async fn classic_wire() {
    let (mut client, server) = serve_one(&["This is key!"], 64);
    let nonce = read_array::<32>(&mut client).await;
    assert_ne!(nonce, [0; 32]);
    client.write_all(&hmac_md5(b"This is key!", &nonce)).await.unwrap();
    assert_eq!(read_verdict(&mut client).await, ACCEPTED);
    assert_eq!(server.await.unwrap().unwrap().peer().key_id(), &"This is key!");
}

#[tokio::test]
async fn wrong_key_gets_the_refusing_verdict_and_a_close() {
    let (mut client, server) = serve_one(&["right"], 64);
    answer_by_hand(&mut client, "wrong").await;
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, REFUSED, "nothing else before the close");
    drop(client);
    assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
}

#[tokio::test]
async fn both_roles_one_byte_at_a_time() {
    for (client_key, accepted) in [("right", true), ("wrong", false)] {
        let (client, server) = duplex(1);
        let (server, client) =
            tokio::join!(acceptor(&["right"]).accept(server), connector(client_key).connect(client));
        assert_eq!(server.is_ok(), accepted);
        assert_eq!(client.is_ok(), accepted);
        if !accepted {
            assert_eq!((server.unwrap_err().kind(), client.unwrap_err().kind()), (Refused, Refused));
        }
    }
}

#[tokio::test]
async fn every_split_of_the_answer() {
    for split in 0..=16 {
        for (key, verdict) in [("right", ACCEPTED), ("wrong", REFUSED)] {
            let (mut client, server) = serve_one(&["right"], 64);
            let answer = hmac_md5(key.as_bytes(), &read_array::<32>(&mut client).await);
            client.write_all(&answer[..split]).await.unwrap();
            yield_now().await;
            client.write_all(&answer[split..]).await.unwrap();
            assert_eq!(read_verdict(&mut client).await, verdict);
            drop(client);
            assert_eq!(server.await.unwrap().is_ok(), verdict == ACCEPTED);
        }
    }
}

#[tokio::test]
async fn every_split_of_challenge_and_verdict() {
    for (verdict, refused) in [(ACCEPTED, false), (REFUSED, true)] {
        for split in 0..=32 {
            for verdict_split in 0..=12 {
                let (client, mut server) = duplex(64);
                let client = tokio::spawn(connector("key").connect(client));
                let nonce = [7; 32];
                server.write_all(&nonce[..split]).await.unwrap();
                yield_now().await;
                server.write_all(&nonce[split..]).await.unwrap();
                assert_eq!(read_array::<16>(&mut server).await, hmac_md5(b"key", &nonce));
                server.write_all(&verdict.as_bytes()[..verdict_split]).await.unwrap();
                yield_now().await;
                server.write_all(&verdict.as_bytes()[verdict_split..]).await.unwrap();
                match client.await.unwrap() {
                    Ok(stream) => assert!(!refused && *stream.peer() == one_way::ServerPeer),
                    Err(error) => assert!(refused && error.kind() == Refused),
                }
            }
        }
    }
}

#[tokio::test]
async fn bytes_after_the_answer_reach_the_service_unchanged() {
    let data: Vec<u8> = (0..=255).cycle().take(5000).collect();
    for ahead in [0, 1, 100, 5000] {
        let (mut client, server) = serve_one(&["key"], 16 * 1024);
        let mut message = hmac_md5(b"key", &read_array::<32>(&mut client).await).to_vec();
        message.extend_from_slice(&data[..ahead]);
        client.write_all(&message).await.unwrap();
        assert_eq!(read_verdict(&mut client).await, ACCEPTED);
        client.write_all(&data[ahead..]).await.unwrap();
        drop(client);
        let mut received = Vec::new();
        server.await.unwrap().unwrap().read_to_end(&mut received).await.unwrap();
        assert_eq!(received, data, "with {ahead} bytes after the answer");
    }
}

#[tokio::test]
async fn bytes_after_the_verdict_reach_the_client_unchanged() {
    let (client, mut server) = duplex(256);
    let client = tokio::spawn(connector("key").connect(client));
    server.write_all(&[7; 32]).await.unwrap();
    read_array::<16>(&mut server).await;
    server.write_all(format!("{ACCEPTED}and a greeting").as_bytes()).await.unwrap();
    drop(server);
    let mut greeting = String::new();
    client.await.unwrap().unwrap().read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "and a greeting");
}

#[tokio::test]
async fn answer_of_15_bytes_is_truncated() {
    let (mut client, server) = serve_one(&["key"], 64);
    let answer = hmac_md5(b"key", &read_array::<32>(&mut client).await);
    client.write_all(&answer[..15]).await.unwrap();
    client.shutdown().await.unwrap();
    let error = server.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), UnexpectedEof);
    assert!(error.to_string().contains("middle of a message"), "{error}");
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "", "closed without a verdict");
}

/// The extra byte is before the answer or within it. A byte after it would be the first of the application.
#[tokio::test]
async fn answer_of_17_bytes_is_refused() {
    for at in 0..16 {
        let (mut client, server) = serve_one(&["key"], 64);
        let mut answer = hmac_md5(b"key", &read_array::<32>(&mut client).await).to_vec();
        answer.insert(at, answer[at] ^ 0x55);
        client.write_all(&answer).await.unwrap();
        assert_eq!(read_verdict(&mut client).await, REFUSED);
        drop(client);
        assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    }
}

#[tokio::test]
async fn every_bit_of_the_answer_is_significant() {
    for bit in 0..128 {
        let (mut client, server) = serve_one(&["key"], 64);
        let mut answer = hmac_md5(b"key", &read_array::<32>(&mut client).await);
        answer[bit / 8] ^= 1 << (bit % 8);
        client.write_all(&answer).await.unwrap();
        drop(client);
        assert_eq!(server.await.unwrap().unwrap_err().kind(), Refused);
    }
}

#[tokio::test]
async fn replayed_answer_is_refused() {
    let acceptor = acceptor(&["key"]);
    let (mut first, server) = duplex(64);
    let first_server = tokio::spawn(acceptor.accept(server));
    let answer = hmac_md5(b"key", &read_array::<32>(&mut first).await);
    first.write_all(&answer).await.unwrap();
    first_server.await.unwrap().unwrap();

    let (mut second, server) = duplex(64);
    let second_server = tokio::spawn(acceptor.accept(server));
    read_array::<32>(&mut second).await;
    second.write_all(&answer).await.unwrap();
    assert_eq!(read_verdict(&mut second).await, REFUSED);
    drop(second);
    assert_eq!(second_server.await.unwrap().unwrap_err().kind(), Refused);
}

#[tokio::test]
async fn peer_has_the_key_id_and_the_metadata_of_its_key() {
    let keys = KeyRing::new([
        KeyEntry::new("alice", key("a")).unwrap().with_metadata(1),
        KeyEntry::new("alice", key("b")).unwrap().with_metadata(2),
        KeyEntry::new("bob", key("c")).unwrap().with_metadata(3),
    ])
    .unwrap();
    let acceptor = Acceptor::new(one_way::Server::new(keys));
    for (key, id, metadata) in [("a", "alice", 1), ("b", "alice", 2), ("c", "bob", 3)] {
        let (client, server) = duplex(64);
        let (server, client) = tokio::join!(acceptor.accept(server), connector(key).connect(client));
        client.unwrap();
        let server = server.unwrap();
        assert_eq!((server.peer().key_id(), *server.peer().metadata()), (&id.parse().unwrap(), metadata));
    }
}

/// The old and the new key are accepted during the overlap. After that the old key is refused, even in handshakes that
/// had begun before.
#[tokio::test]
async fn key_rotation() {
    let ring = ring(&["old"]);
    let acceptor = Acceptor::new(one_way::Server::new(ring.clone()));
    let start = || {
        let (client, server) = duplex(64);
        (client, tokio::spawn(acceptor.accept(server)))
    };
    let (mut begun, begun_server) = start();
    let nonce = read_array::<32>(&mut begun).await;

    ring.replace(entries(&["old", "new"])).unwrap();
    for key in ["old", "new"] {
        let (client, server) = start();
        connector(key).connect(client).await.unwrap();
        assert_eq!(server.await.unwrap().unwrap().peer().key_id(), &key);
    }

    ring.replace(entries(&["new"])).unwrap();
    begun.write_all(&hmac_md5(b"old", &nonce)).await.unwrap();
    drop(begun);
    assert_eq!(begun_server.await.unwrap().unwrap_err().kind(), Refused);
}

#[tokio::test]
async fn custom_digest_and_wire() {
    let wire = one_way::Wire::new(16, "y", "n").unwrap();
    let keys = KeyRing::new([KeyEntry::new("k", key("k")).unwrap()]).unwrap();
    let acceptor = Acceptor::new(one_way::Server::<Sha256>::with_digest(keys).wire(wire.clone()));
    for (text, accepted) in [("k", true), ("x", false)] {
        let client = one_way::Client::<Sha256>::with_digest(&key(text)).wire(wire.clone());
        let (client_io, server_io) = duplex(1);
        let (server, client) =
            tokio::join!(acceptor.accept(server_io), Connector::new(client).connect(client_io));
        assert_eq!((server.is_ok(), client.is_ok()), (accepted, accepted));
    }
    // SHA-256 needs an answer of 32 bytes, and the client sends 16.
    let (mut client, server) = duplex(64);
    let server = tokio::spawn(acceptor.accept(server));
    let nonce = read_array::<16>(&mut client).await;
    client.write_all(&hmac_md5(b"k", &nonce)).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(server.await.unwrap().unwrap_err().kind(), UnexpectedEof);
}

#[tokio::test]
async fn client_errors() {
    for (messages, kind) in [
        (&b""[..], UnexpectedEof),
        (&[7; 31], UnexpectedEof),
        (&[7; 32], UnexpectedEof),
        (&[&[7; 32], "验证成".as_bytes()].concat(), UnexpectedEof),
        (&[&[7; 32], REFUSED.as_bytes()].concat(), Refused),
        (&[&[7; 32], "验证成攻".as_bytes()].concat(), Malformed),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", Malformed),
    ] {
        let (client, mut server) = duplex(64);
        server.write_all(messages).await.unwrap();
        server.shutdown().await.unwrap();
        let error = connector("key").connect(client).await.unwrap_err();
        assert_eq!(error.kind(), kind, "after {messages:?}");
    }
}

/// A mechanism whose random bytes come from the test.
struct WithRandom<M, F>(M, F);

impl<M: Mechanism, F: Fn(&mut [u8]) -> Result<(), &'static str>> Mechanism for WithRandom<M, F> {
    type Role = M::Role;
    type Handshake = M::Handshake;

    const NAME: &'static str = M::NAME;

    fn start(&self, _: &mut Context<'_>) -> Result<Start<M::Handshake>, HandshakeError> {
        self.0.start(&mut Context::with_random(&mut |out| (self.1)(out).map_err(Into::into)))
    }
}

/// RFC 2202, section 2, in complete handshakes of both roles. The unit tests of the key have cases 1 and 7, whose data
/// are too short or too long for a nonce.
#[tokio::test]
async fn rfc_2202_cases_2_to_6() {
    let cases: [(&[u8], &[u8], &str); 5] = [
        (b"Jefe", b"what do ya want for nothing?", "750c783e6ab0b503eaa86e310a5db738"),
        (&[0xaa; 16], &[0xdd; 50], "56be34521d144c88dbb8c733f0e8b3f6"),
        (
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25],
            &[0xcd; 50],
            "697eaf0aca3a3aea3a75164746ffaa79",
        ),
        (&[0x0c; 16], b"Test With Truncation", "56461ef2342edc00f9bab995690efd4c"),
        (
            &[0xaa; 80],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd",
        ),
    ];
    for (key, data, digest) in cases {
        let wire = one_way::Wire::new(data.len(), ACCEPTED, REFUSED).unwrap();
        let key = Key::new(key).unwrap();
        let digest: Vec<u8> =
            (0..16).map(|i| u8::from_str_radix(&digest[2 * i..2 * i + 2], 16).unwrap()).collect();

        let (client, mut server) = duplex(64);
        server.write_all(data).await.unwrap();
        let client =
            tokio::spawn(Connector::new(one_way::Client::new(&key).wire(wire.clone())).connect(client));
        assert_eq!(read_array::<16>(&mut server).await.as_slice(), digest);
        server.write_all(ACCEPTED.as_bytes()).await.unwrap();
        client.await.unwrap().unwrap();

        let ring = KeyRing::new([KeyEntry::new("k", key).unwrap()]).unwrap();
        let mechanism = WithRandom(one_way::Server::new(ring).wire(wire), |out: &mut [u8]| {
            out.copy_from_slice(data);
            Ok(())
        });
        let (mut client, server) = duplex(256);
        client.write_all(&digest).await.unwrap();
        Acceptor::new(mechanism).accept(server).await.unwrap();
    }
}

#[tokio::test]
async fn failing_random_generator_closes_and_is_reported() {
    let mechanism =
        WithRandom(one_way::Server::new(ring(&["key"])), |_: &mut [u8]| Err("the generator is broken"));
    let (mut client, server) = duplex(64);
    let error = Acceptor::new(mechanism).accept(server).await.unwrap_err();
    assert_eq!(error.kind(), Random);
    assert_eq!(error.get_ref().unwrap().to_string(), "the generator is broken");
    assert!(error.to_string().ends_with(": the generator is broken"), "{error}");
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert!(received.is_empty(), "closed without a challenge");
}

/// The state machine rejects messages that its codec would not produce in this order.
#[test]
fn messages_out_of_order_are_malformed() {
    use tower_challenge::mechanism::{Handshake as _, Input, Step};

    let start = || {
        let client = one_way::Client::new(&key("key"));
        client.start(&mut Context::with_random(&mut |_| unreachable!())).unwrap().handshake
    };
    let server =
        || one_way::Server::new(ring(&["key"])).start(&mut Context::with_random(&mut |_| Ok(()))).unwrap();
    let challenge = || server().send.expect("the server speaks first");
    // The challenge of every server is the same here, so one answer is correct for all of them.
    let answer_of = |text: &str| {
        let client = one_way::Client::new(&key(text));
        let mut handshake =
            client.start(&mut Context::with_random(&mut |_| unreachable!())).unwrap().handshake;
        match handshake.step(Input::Frame(challenge())) {
            Ok(Step::Continue { send: Some(answer) }) => answer,
            other => panic!("{other:?}"),
        }
    };
    let accepted = match server().handshake.step(Input::Frame(answer_of("key"))) {
        Ok(Step::Complete { send: Some(verdict), .. }) => verdict,
        other => panic!("{other:?}"),
    };
    let refused = match server().handshake.step(Input::Frame(answer_of("wrong"))) {
        Err(reject) => reject.verdict().expect("a verdict").clone(),
        other => panic!("{other:?}"),
    };
    for verdict in [accepted, refused] {
        let reject = start().step(Input::Frame(verdict)).unwrap_err();
        assert_eq!(reject.error().kind(), Malformed);
    }
    let mut handshake = start();
    handshake.step(Input::Frame(challenge())).unwrap();
    assert_eq!(handshake.step(Input::Frame(challenge())).unwrap_err().error().kind(), Malformed);
}

#[test]
fn debug_prints_no_secret() {
    let server = one_way::Server::new(ring(&["sesame"]));
    let client = one_way::Client::new(&key("sesame"));
    let start = server
        .start(&mut Context::with_random(&mut |out| {
            out.fill(0xab);
            Ok(())
        }))
        .unwrap();
    for shown in [
        format!("{server:?}"),
        format!("{client:?}"),
        format!("{start:?}"),
        format!("{:?}", start.handshake),
        format!("{:?}", start.send),
        format!("{:?}", Acceptor::new(server.clone())),
    ] {
        // "sesame" is the id of the key, too, which is not printed either.
        assert!(!shown.contains("sesame") && !shown.contains("171") && !shown.contains("ab, "), "{shown}");
    }
}

fn is_send<T: Send>(_: &T) {}

#[tokio::test(start_paused = true)]
async fn futures_are_send_and_the_deadline_starts_at_the_call() {
    let (_client, server) = duplex(64);
    let accept = acceptor(&["key"]).timeout(Duration::from_secs(2)).accept(server);
    is_send(&accept);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = tokio::time::Instant::now();
    assert_eq!(accept.await.unwrap_err().kind(), tower_challenge::HandshakeErrorKind::TimedOut);
    assert_eq!(before.elapsed(), Duration::ZERO);
    let _: Option<PeerOf<one_way::Server>> = None;
}
