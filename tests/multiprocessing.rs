//! CPython's wire against peers that the tests play by hand: messages sent, messages accepted, and that a client never
//! answers a challenge of this crate. `interop/python_multiprocessing.rs` runs it against CPython itself.
#![cfg(feature = "multiprocessing")]

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac, SimpleHmac};
use md5::Md5;
use sha2::{Sha256, Sha384};
use sha3::{Sha3_256, Sha3_384};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::HandshakeErrorKind::{Malformed, Refused, ServerNotAuthenticated, UnexpectedEof};
use tower_challenge::multiprocessing::{Client, Digest, KeyRing, Server};
use tower_challenge::{Acceptor, Connector, HandshakeErrorKind, Identity};

use crate::support::{entries, key};

fn server(keys: &[&str]) -> Server {
    Server::new(KeyRing::new(entries(keys)).unwrap())
}

fn client(text: &str) -> Client {
    Client::new(&key(text))
}

async fn send(io: &mut DuplexStream, parts: &[&[u8]]) {
    let message = parts.concat();
    io.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).await.unwrap();
    io.write_all(&message).await.unwrap();
}

/// Returns the next message, or `None` if the peer closes.
async fn receive(io: &mut DuplexStream) -> Option<Vec<u8>> {
    let len = io.read_u32().await.ok()?;
    let mut message = vec![0; len.try_into().unwrap()];
    io.read_exact(&mut message).await.unwrap();
    Some(message)
}

fn mac<M: Mac + KeyInit>(key: &str, message: &[u8]) -> Vec<u8> {
    <M as KeyInit>::new_from_slice(key.as_bytes())
        .unwrap()
        .chain_update(message)
        .finalize()
        .into_bytes()
        .to_vec()
}

fn hmac(name: &str, key: &str, message: &[u8]) -> Vec<u8> {
    match name {
        "{sha256}" => mac::<Hmac<Sha256>>(key, message),
        "{sha384}" => mac::<Hmac<Sha384>>(key, message),
        "{sha3_256}" => mac::<SimpleHmac<Sha3_256>>(key, message),
        "{sha3_384}" => mac::<SimpleHmac<Sha3_384>>(key, message),
        "{md5}" | "" => mac::<Hmac<Md5>>(key, message),
        _ => unreachable!(),
    }
}

/// Receives the challenge of a server or a client of this crate.
async fn challenge(io: &mut DuplexStream) -> Vec<u8> {
    let message = receive(io).await.unwrap();
    let message = message.strip_prefix(b"#CHALLENGE#").unwrap();
    assert!(message.starts_with(b"{sha256}") && message.len() == 48);
    message.to_vec()
}

type Outcome = Result<Identity, HandshakeErrorKind>;

fn accept(server: &Server) -> (DuplexStream, tokio::task::JoinHandle<Outcome>) {
    let (client, io) = duplex(1024);
    let accept = Acceptor::new(server.clone()).accept(io);
    let accept = async { accept.await.map(|stream| stream.peer().clone()).map_err(|error| error.kind()) };
    (client, tokio::spawn(accept))
}

fn connect(client: &Client) -> (DuplexStream, tokio::task::JoinHandle<Result<(), HandshakeErrorKind>>) {
    let (server, io) = duplex(1024);
    let connect = Connector::new(client.clone()).connect(io);
    (server, tokio::spawn(async { connect.await.map(drop).map_err(|error| error.kind()) }))
}

#[tokio::test]
async fn both_roles_one_byte_at_a_time() {
    let server = server(&["other", "right"]);
    for (text, accepted) in [("right", true), ("wrong", false)] {
        let (client_io, server_io) = duplex(1);
        let (acceptor, connector) = (Acceptor::new(server.clone()), Connector::new(client(text)));
        let (server, client) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
        assert_eq!((server.is_ok(), client.is_ok()), (accepted, accepted));
        match server {
            Ok(stream) => assert_eq!(stream.peer().key_id(), &"right"),
            Err(error) => assert_eq!((error.kind(), client.unwrap_err().kind()), (Refused, Refused)),
        }
    }
}

#[tokio::test]
async fn server_answers_a_challenge_with_the_digest_it_names() {
    for (name, allowed) in
        [("{sha256}", true), ("{sha384}", true), ("{sha3_256}", true), ("{sha3_384}", true), ("{md5}", false)]
    {
        let (mut io, accepted) = accept(&server(&["key"]));
        let message = challenge(&mut io).await;
        send(&mut io, &[b"{sha256}", &hmac("{sha256}", "key", &message)]).await;
        assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
        let ours = [name.as_bytes(), &[7; 40]].concat();
        send(&mut io, &[b"#CHALLENGE#", &ours]).await;
        let answer = receive(&mut io).await;
        if !allowed {
            assert_eq!((answer, accepted.await.unwrap().unwrap_err()), (None, Malformed));
            continue;
        }
        assert_eq!(answer.unwrap(), [name.as_bytes(), &hmac(name, "key", &ours)].concat());
        send(&mut io, &[b"#WELCOME#"]).await;
        assert_eq!(accepted.await.unwrap().unwrap().key_id(), &"key");
    }
}

#[tokio::test]
async fn server_refuses_another_digest_and_a_wrong_answer() {
    let message_of = async |io: &mut DuplexStream| challenge(io).await;
    for (name, key) in [("{sha384}", "key"), ("{md5}", "key"), ("", "key"), ("{sha256}", "wrong")] {
        let (mut io, accepted) = accept(&server(&["key"]));
        let message = message_of(&mut io).await;
        send(&mut io, &[name.as_bytes(), &hmac(name, key, &message)]).await;
        assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#", "{name} {key}");
        assert_eq!(receive(&mut io).await, None);
        drop(io);
        assert_eq!(accepted.await.unwrap().unwrap_err(), Refused);
    }
    // Every bit is significant, also those of the name.
    for bit in 0..40 * 8 {
        let (mut io, accepted) = accept(&server(&["key"]));
        let message = message_of(&mut io).await;
        let mut answer = [&b"{sha256}"[..], &hmac("{sha256}", "key", &message)].concat();
        answer[bit / 8] ^= 1 << (bit % 8);
        send(&mut io, &[&answer]).await;
        assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
        drop(io);
        assert_eq!(accepted.await.unwrap().unwrap_err(), Refused);
    }
}

#[tokio::test]
async fn server_does_not_accept_without_the_client_s_welcome() {
    for (verdict, kind) in [(&b"#FAILURE#"[..], Refused), (b"#WELCOME", Malformed), (b"", Malformed)] {
        let (mut io, accepted) = accept(&server(&["key"]));
        let message = challenge(&mut io).await;
        send(&mut io, &[b"{sha256}", &hmac("{sha256}", "key", &message)]).await;
        receive(&mut io).await.unwrap();
        send(&mut io, &[b"#CHALLENGE#{sha256}", &[7; 40]]).await;
        receive(&mut io).await.unwrap();
        send(&mut io, &[verdict]).await;
        assert_eq!(accepted.await.unwrap().unwrap_err(), kind);
    }
}

#[tokio::test]
async fn frames_have_at_most_256_bytes_and_never_the_long_form() {
    for (bytes, kind) in [
        (&b"\0\0\x01\x01"[..], Malformed),
        (b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x08", Malformed),
        (b"\x80\0\0\0", Malformed),
        (b"\0\0\0\x08{sha25", UnexpectedEof),
        (b"\0\0", UnexpectedEof),
    ] {
        let (mut io, accepted) = accept(&server(&["key"]));
        challenge(&mut io).await;
        io.write_all(bytes).await.unwrap();
        io.shutdown().await.unwrap();
        assert_eq!(accepted.await.unwrap().unwrap_err(), kind);
        assert_eq!(receive(&mut io).await, None, "closed without an answer");
    }
    let (mut io, accepted) = accept(&server(&["key"]));
    challenge(&mut io).await;
    send(&mut io, &[&[b'x'; 256]]).await;
    assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
    drop(io);
    assert_eq!(accepted.await.unwrap().unwrap_err(), Refused);
}

#[tokio::test]
async fn client_answers_allowed_challenges_only() {
    for (message, allowed) in [
        ([&b"{sha256}"[..], &[7; 40]].concat(), true),
        ([&b"{sha3_384}"[..], &[7; 40]].concat(), true),
        ([&b"{sha256}"[..], &[7; 100]].concat(), true),
        ([&b"{sha256}"[..], &[7; 19]].concat(), false),
        ([&b"{md5}"[..], &[7; 40]].concat(), false),
        ([&b"{sha1}"[..], &[7; 40]].concat(), false),
        ([7; 40].to_vec(), false),
        ([7; 20].to_vec(), false),
        (b"".to_vec(), false),
    ] {
        let (mut io, connected) = connect(&client("key"));
        send(&mut io, &[b"#CHALLENGE#", &message]).await;
        match receive(&mut io).await {
            Some(answer) => {
                assert!(allowed, "{message:?}");
                let end = message.iter().position(|&byte| byte == b'}').unwrap() + 1;
                let name = std::str::from_utf8(&message[..end]).unwrap();
                assert_eq!(answer, [name.as_bytes(), &hmac(name, "key", &message)].concat());
            }
            None => assert_eq!((allowed, connected.await.unwrap()), (false, Err(Malformed)), "{message:?}"),
        }
    }
    let (mut io, _connected) = connect(&client("key").digests([Digest::Md5]));
    send(&mut io, &[b"#CHALLENGE#{md5}", &[7; 40]]).await;
    receive(&mut io).await.unwrap();
    let (mut io, connected) = connect(&client("key").digests([Digest::Md5]));
    send(&mut io, &[b"#CHALLENGE#{sha256}", &[7; 40]]).await;
    assert_eq!((receive(&mut io).await, connected.await.unwrap()), (None, Err(Malformed)));
}

/// Plays a server that welcomes every client, and returns the client's challenge.
async fn challenge_of_client(io: &mut DuplexStream) -> Vec<u8> {
    send(io, &[b"#CHALLENGE#{sha256}", &[7; 40]]).await;
    receive(io).await.unwrap();
    send(io, &[b"#WELCOME#"]).await;
    challenge(io).await
}

#[tokio::test]
async fn client_refuses_a_server_without_the_key() {
    let (mut io, connected) = connect(&client("key"));
    let message = challenge_of_client(&mut io).await;
    send(&mut io, &[b"{sha256}", &hmac("{sha256}", "wrong", &message)]).await;
    assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
    drop(io);
    assert_eq!(connected.await.unwrap(), Err(ServerNotAuthenticated));

    let (mut io, connected) = connect(&client("key"));
    let message = challenge_of_client(&mut io).await;
    send(&mut io, &[b"{sha256}", &hmac("{sha256}", "key", &message)]).await;
    assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
    connected.await.unwrap().unwrap();
}

/// A rogue server forwards a client's challenge to another connection of a client with the same key.
#[tokio::test]
async fn client_does_not_answer_a_reflected_challenge() {
    for legacy in [false, true] {
        let victim = || if legacy { client("key").allow_legacy_md5() } else { client("key") };
        let (mut first, _first) = connect(&victim());
        let message = challenge_of_client(&mut first).await;
        // Unchanged, under another name, or after a prefix.
        for message in [
            message.clone(),
            [&b"{sha384}"[..], &message[8..]].concat(),
            [&b"{sha256}"[..], &message].concat(),
        ] {
            let (mut second, connected) = connect(&victim());
            send(&mut second, &[b"#CHALLENGE#", &message]).await;
            assert_eq!(receive(&mut second).await, None);
            assert_eq!(connected.await.unwrap(), Err(ServerNotAuthenticated));
        }
        // A client with another key does not recognize the mark.
        let (mut other, _connected) = connect(&client("another key"));
        send(&mut other, &[b"#CHALLENGE#", &message]).await;
        receive(&mut other).await.unwrap();
    }
}

#[tokio::test]
async fn legacy_md5_is_opt_in() {
    // A client of CPython up to 3.11 sends a bare HMAC-MD5 over all 48 bytes, then a challenge of 20 bytes.
    for (server, accepted) in [(server(&["key"]).allow_legacy_md5(), true), (server(&["key"]), false)] {
        let (mut io, outcome) = accept(&server);
        let message = challenge(&mut io).await;
        send(&mut io, &[&hmac("", "key", &message)]).await;
        if !accepted {
            assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
            continue;
        }
        assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
        send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
        assert_eq!(receive(&mut io).await.unwrap(), hmac("", "key", &[7; 20]));
        send(&mut io, &[b"#WELCOME#"]).await;
        outcome.await.unwrap().unwrap();
    }
    // A server of CPython up to 3.11.
    let (mut io, connected) = connect(&client("key").allow_legacy_md5());
    send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
    assert_eq!(receive(&mut io).await.unwrap(), hmac("", "key", &[7; 20]));
    send(&mut io, &[b"#WELCOME#"]).await;
    let message = challenge(&mut io).await;
    send(&mut io, &[&hmac("", "key", &message)]).await;
    assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
    connected.await.unwrap().unwrap();
}

/// If a challenge were repeated, an answer could be replayed.
#[tokio::test]
async fn challenges_are_fresh_and_answers_are_not_reusable() {
    let server = server(&["key"]);
    let (mut first, _first) = accept(&server);
    let message = challenge(&mut first).await;
    let answer = hmac("{sha256}", "key", &message);
    let (mut second, accepted) = accept(&server);
    assert_ne!(challenge(&mut second).await, message);
    send(&mut second, &[b"{sha256}", &answer]).await;
    assert_eq!(receive(&mut second).await.unwrap(), b"#FAILURE#");
    drop(second);
    assert_eq!(accepted.await.unwrap().unwrap_err(), Refused);

    let client = client("key");
    let (mut first, _first) = connect(&client);
    let message = challenge_of_client(&mut first).await;
    let answer = hmac("{sha256}", "key", &message);
    let (mut second, connected) = connect(&client);
    assert_ne!(challenge_of_client(&mut second).await, message);
    send(&mut second, &[b"{sha256}", &answer]).await;
    assert_eq!(receive(&mut second).await.unwrap(), b"#FAILURE#");
    drop(second);
    assert_eq!(connected.await.unwrap(), Err(ServerNotAuthenticated));
}

/// `allow_legacy_md5` is for old peers only: a peer that has used SHA-256 must not fall back to MD5.
#[tokio::test]
async fn legacy_md5_is_refused_after_sha256() {
    let (mut io, accepted) = accept(&server(&["key"]).allow_legacy_md5());
    let message = challenge(&mut io).await;
    send(&mut io, &[b"{sha256}", &hmac("{sha256}", "key", &message)]).await;
    receive(&mut io).await.unwrap();
    send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
    assert_eq!((receive(&mut io).await, accepted.await.unwrap().unwrap_err()), (None, Malformed));

    let (mut io, connected) = connect(&client("key").allow_legacy_md5());
    let message = challenge_of_client(&mut io).await;
    send(&mut io, &[&hmac("", "key", &message)]).await;
    assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
    drop(io);
    assert_eq!(connected.await.unwrap(), Err(ServerNotAuthenticated));
}
