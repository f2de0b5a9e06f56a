//! Dialects of the wires that exist elsewhere: Pythons that RHEL patched, and `one_way` without a verdict. The peers are
//! played by hand, byte by byte.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tower_challenge::HandshakeErrorKind::{Refused, UnexpectedEof};
use tower_challenge::mechanism::{Context, Handshake as _, Input, Mechanism, Start, Step};
use tower_challenge::{Acceptor, Connector, HandshakeError};

use crate::support::{hmac_md5, key, read_array, ring};

/// A mechanism whose random bytes are counted up from 1.
struct Counting<M>(M);

impl<M: Mechanism> Mechanism for Counting<M> {
    type Role = M::Role;
    type Handshake = M::Handshake;

    const NAME: &'static str = M::NAME;

    fn start(&self, _: &mut Context<'_>) -> Result<Start<M::Handshake>, HandshakeError> {
        let mut next = 0;
        let mut count = |out: &mut [u8]| {
            out.fill_with(|| {
                next += 1;
                next
            });
            Ok(())
        };
        self.0.start(&mut Context::with_random(&mut count))
    }
}

/// The recipe 11.9 of the Python Cookbook: a nonce, an HMAC, data.
mod without_verdict {
    use tower_challenge::one_way::{Client, Server, ServerPeer, Wire};

    use super::*;

    fn acceptor(keys: &[&str]) -> Acceptor<Server> {
        Acceptor::new(Server::new(ring(keys)).wire(Wire::without_verdict(32).unwrap()))
    }

    fn connector(text: &str) -> Connector<Client> {
        Connector::new(Client::new(&key(text)).wire(Wire::without_verdict(32).unwrap()))
    }

    #[tokio::test]
    async fn server_sends_a_nonce_and_then_only_data() {
        for (ahead, data) in
            [(0, "after the answer"), (5, "in the same segment as the answer"), (17, "with its read")]
        {
            let (mut client, io) = duplex(256);
            let server = tokio::spawn(acceptor(&["other", "peekaboo"]).accept(io));
            let nonce = read_array::<32>(&mut client).await;
            let mut message = hmac_md5(b"peekaboo", &nonce).to_vec();
            let (sent, later) = data.split_at(ahead.min(data.len()));
            message.extend_from_slice(sent.as_bytes());
            client.write_all(&message).await.unwrap();
            let mut stream = server.await.unwrap().unwrap();
            assert_eq!(stream.peer().key_id(), &"peekaboo");
            stream.write_all(b"greeting").await.unwrap();
            client.write_all(later.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = String::new();
            stream.read_to_string(&mut received).await.unwrap();
            assert_eq!(received, data);
            drop(stream);
            received.clear();
            client.read_to_string(&mut received).await.unwrap();
            assert_eq!(received, "greeting");
        }
    }

    #[tokio::test]
    async fn server_disconnects_a_refused_client_without_a_byte() {
        let (mut client, io) = duplex(256);
        let server = tokio::spawn(acceptor(&["right"]).accept(io));
        let nonce = read_array::<32>(&mut client).await;
        client.write_all(&hmac_md5(b"wrong", &nonce)).await.unwrap();
        client.write_all(b"data of a client that believes it was accepted").await.unwrap();
        let error = server.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Refused);
        assert!(error.to_string().contains("matches none of the keys"), "{error}");
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"");
    }

    #[tokio::test]
    async fn client_completes_when_its_answer_is_sent() {
        let (io, mut server) = duplex(256);
        let nonce = [7; 32];
        server.write_all(&nonce).await.unwrap();
        server.write_all(b"early data").await.unwrap();
        // The server has not read the answer yet.
        let mut stream = connector("peekaboo").connect(io).await.unwrap();
        assert_eq!(*stream.peer(), ServerPeer);
        stream.write_all(b"Hello World").await.unwrap();
        assert_eq!(read_array::<16>(&mut server).await, hmac_md5(b"peekaboo", &nonce));
        assert_eq!(&read_array::<11>(&mut server).await, b"Hello World");
        assert_eq!(&read_array::<10>(&mut stream).await, b"early data");
    }

    #[test]
    fn client_waits_for_nothing_after_the_challenge() {
        let wire = Wire::without_verdict(32).unwrap();
        let server = Counting(Server::new(ring(&["key"])).wire(wire.clone()));
        let challenge = server.start(&mut Context::with_random(&mut |_| Ok(()))).unwrap().send.unwrap();
        let client = Client::new(&key("key")).wire(wire);
        let mut start = client.start(&mut Context::with_random(&mut |_| Ok(()))).unwrap();
        let step = start.handshake.step(Input::Frame(challenge)).unwrap();
        assert!(matches!(step, Step::Complete { send: Some(_), peer: ServerPeer }));
    }

    /// A refused client learns it from its first read.
    #[tokio::test]
    async fn both_roles_one_byte_at_a_time() {
        for (text, accepted) in [("right", true), ("wrong", false)] {
            let (client, server) = duplex(1);
            let (server, client) =
                tokio::join!(acceptor(&["right"]).accept(server), connector(text).connect(client));
            let mut client = client.unwrap();
            assert_eq!(server.is_ok(), accepted);
            if let Ok(mut server) = server {
                let (sent, received) = tokio::join!(server.write_all(b"hi"), read_array::<2>(&mut client));
                sent.unwrap();
                assert_eq!(&received, b"hi");
            } else {
                assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn client_whose_server_closes_before_the_nonce_fails() {
        let (io, mut server) = duplex(64);
        server.write_all(&[7; 31]).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(connector("key").connect(io).await.unwrap_err().kind(), UnexpectedEof);
    }

    #[test]
    fn wire_says_that_it_has_no_verdict() {
        let wire = Wire::without_verdict(32).unwrap();
        assert!(!wire.has_verdict() && Wire::CLASSIC.has_verdict());
        assert_eq!((wire.accepted(), wire.refused(), wire.nonce_len()), (&[][..], &[][..], 32));
    }
}

#[cfg(feature = "multiprocessing")]
mod multiprocessing {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use sha2::Sha256;
    use tokio::io::DuplexStream;
    use tower_challenge::HandshakeErrorKind::{Malformed, ServerNotAuthenticated};
    use tower_challenge::multiprocessing::{Client, KeyRing, Server};
    use tower_challenge::{Identity, RefusalReason};

    use super::*;
    use crate::support::entries;

    fn server() -> Server {
        Server::new(KeyRing::new(entries(&["other", "key"])).unwrap())
    }

    fn client() -> Client {
        Client::new(&key("key"))
    }

    fn sha256(key: &str, message: &[u8]) -> Vec<u8> {
        let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.chain_update(message).finalize().into_bytes().to_vec()
    }

    fn md5(key: &str, message: &[u8]) -> Vec<u8> {
        hmac_md5(key.as_bytes(), message).to_vec()
    }

    type Tag = fn(&str, &[u8]) -> Vec<u8>;

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

    /// Receives a challenge of this crate: the name of a digest and 40 bytes.
    async fn challenge(io: &mut DuplexStream) -> Vec<u8> {
        let message = receive(io).await.unwrap();
        let message = message.strip_prefix(b"#CHALLENGE#").unwrap();
        assert!(message.starts_with(b"{sha256}") && message.len() == 48);
        message.to_vec()
    }

    fn accept(server: Server) -> (DuplexStream, tokio::task::JoinHandle<Result<Identity, HandshakeError>>) {
        let (client, io) = duplex(1024);
        let accept = Acceptor::new(server).accept(io);
        (client, tokio::spawn(async { accept.await.map(|stream| stream.peer().clone()) }))
    }

    fn connect(client: Client) -> (DuplexStream, tokio::task::JoinHandle<Result<(), HandshakeError>>) {
        let (server, io) = duplex(1024);
        let connect = Connector::new(client).connect(io);
        (server, tokio::spawn(async { connect.await.map(drop) }))
    }

    #[tokio::test]
    async fn server_speaks_the_dialect_of_the_client() {
        let tags: [Tag; 2] = [sha256, md5];
        for (tag, other) in [(tags[0], tags[1]), (tags[1], tags[0])] {
            let (mut io, accepted) = accept(server().allow_legacy_sha256().allow_legacy_md5());
            let message = challenge(&mut io).await;
            send(&mut io, &[&tag("key", &message)]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
            send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
            let answer = receive(&mut io).await.unwrap();
            assert_eq!(answer, tag("key", &[7; 20]));
            assert_ne!(answer, other("key", &[7; 20]));
            send(&mut io, &[b"#WELCOME#"]).await;
            assert_eq!(accepted.await.unwrap().unwrap().key_id(), &"key");
        }
    }

    #[tokio::test]
    async fn server_refuses_a_dialect_that_is_not_allowed_and_names_the_setting() {
        let cases: [(Server, Tag, RefusalReason, &str); 4] = [
            (server(), sha256, RefusalReason::LegacySha256, "(allow_legacy_sha256)"),
            (server().allow_legacy_md5(), sha256, RefusalReason::LegacySha256, "(allow_legacy_sha256)"),
            (server(), md5, RefusalReason::LegacyMd5, "(allow_legacy_md5)"),
            (server().allow_legacy_sha256(), md5, RefusalReason::LegacyMd5, "(allow_legacy_md5)"),
        ];
        for (server, tag, reason, setting) in cases {
            let (mut io, accepted) = accept(server);
            let message = challenge(&mut io).await;
            send(&mut io, &[&tag("key", &message)]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
            drop(io);
            let error = accepted.await.unwrap().unwrap_err();
            assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(reason)));
            assert!(error.to_string().ends_with(setting), "{error}");
        }
    }

    #[tokio::test]
    async fn server_refuses_a_wrong_bare_sha256() {
        for bit in 0..32 * 8 {
            let (mut io, accepted) = accept(server().allow_legacy_sha256());
            let mut tag = sha256("key", &challenge(&mut io).await);
            tag[bit / 8] ^= 1 << (bit % 8);
            send(&mut io, &[&tag]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
            drop(io);
            let reason = accepted.await.unwrap().unwrap_err().refusal_reason();
            assert_eq!(reason, Some(RefusalReason::NoMatchingKey));
        }
    }

    /// The tag is right, and the name before it is that of another digest.
    #[tokio::test]
    async fn server_refuses_a_right_tag_with_the_name_of_another_digest() {
        for name in ["{sha384}", "{sha3_256}", "{sha3_384}", "{md5}", "{sha1}", "{sha256", ""] {
            let (mut io, accepted) = accept(server().allow_legacy_md5());
            let message = challenge(&mut io).await;
            send(&mut io, &[name.as_bytes(), &sha256("key", &message)]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#", "{name}");
            drop(io);
            assert_eq!(accepted.await.unwrap().unwrap_err().kind(), Refused);
        }
    }

    #[tokio::test]
    async fn server_does_not_answer_a_legacy_challenge_after_a_named_answer() {
        let (mut io, accepted) = accept(server().allow_legacy_sha256().allow_legacy_md5());
        let message = challenge(&mut io).await;
        send(&mut io, &[b"{sha256}", &sha256("key", &message)]).await;
        receive(&mut io).await.unwrap();
        send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
        assert_eq!(receive(&mut io).await, None);
        assert_eq!(accepted.await.unwrap().unwrap_err().kind(), Malformed);
    }

    #[tokio::test]
    async fn client_speaks_the_dialect_that_is_allowed() {
        let cases: [(Client, Tag); 3] = [
            (client().allow_legacy_sha256(), sha256),
            (client().allow_legacy_md5(), md5),
            // If both are allowed, it must choose.
            (client().allow_legacy_md5().allow_legacy_sha256(), sha256),
        ];
        for (client, tag) in cases {
            let (mut io, connected) = connect(client);
            send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
            assert_eq!(receive(&mut io).await.unwrap(), tag("key", &[7; 20]));
            send(&mut io, &[b"#WELCOME#"]).await;
            let message = challenge(&mut io).await;
            send(&mut io, &[&tag("key", &message)]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#WELCOME#");
            connected.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn client_refuses_a_server_that_changes_the_dialect_or_has_another_key() {
        let legacy = |message: &'static [u8]| [b"#CHALLENGE#", message].concat();
        let cases: [(Client, Vec<u8>, Tag, &str); 4] = [
            (client().allow_legacy_sha256().allow_legacy_md5(), legacy(&[7; 20]), md5, "key"),
            (client().allow_legacy_md5(), legacy(&[7; 20]), sha256, "key"),
            (client().allow_legacy_sha256(), legacy(&[7; 20]), sha256, "wrong"),
            (
                client().allow_legacy_sha256(),
                legacy(b"{sha256}0123456789012345678901234567890123456789"),
                sha256,
                "key",
            ),
        ];
        for (client, theirs, tag, text) in cases {
            let (mut io, connected) = connect(client);
            send(&mut io, &[&theirs]).await;
            receive(&mut io).await.unwrap();
            send(&mut io, &[b"#WELCOME#"]).await;
            let message = challenge(&mut io).await;
            send(&mut io, &[&tag(text, &message)]).await;
            assert_eq!(receive(&mut io).await.unwrap(), b"#FAILURE#");
            drop(io);
            assert_eq!(connected.await.unwrap().unwrap_err().kind(), ServerNotAuthenticated);
        }
    }

    #[tokio::test]
    async fn client_names_the_settings_for_a_server_of_an_older_python() {
        let (mut io, connected) = connect(client());
        send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
        assert_eq!(receive(&mut io).await, None, "the challenge is not answered");
        let error = connected.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Malformed);
        let text = error.to_string();
        assert!(text.contains("allow_legacy_md5") && text.contains("allow_legacy_sha256"), "{text}");
        assert!(!text.contains("another mechanism"), "{text}");

        for (client, setting) in [
            (client().allow_legacy_md5(), "allow_legacy_sha256"),
            (client().allow_legacy_sha256(), "allow_legacy_md5"),
        ] {
            let (mut io, connected) = connect(client);
            send(&mut io, &[b"#CHALLENGE#", &[7; 20]]).await;
            receive(&mut io).await.unwrap();
            send(&mut io, &[b"#FAILURE#"]).await;
            let error = connected.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), Refused);
            assert!(error.to_string().contains(setting), "{error}");
        }
    }

    #[tokio::test]
    async fn both_roles_with_both_dialects_allowed_use_neither() {
        let (client_io, server_io) = duplex(1);
        let server = server().allow_legacy_md5().allow_legacy_sha256();
        let client = client().allow_legacy_md5().allow_legacy_sha256();
        let (acceptor, connector) = (Acceptor::new(server), Connector::new(client));
        let (accepted, connected) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io));
        accepted.unwrap();
        connected.unwrap();
    }

    /// With fewer random bytes, a challenge could repeat, and an answer to it be replayed.
    #[tokio::test]
    async fn all_bytes_of_a_challenge_are_random() {
        let (mut io, server_io) = duplex(1024);
        let _accepting = tokio::spawn(Acceptor::new(Counting(server())).accept(server_io));
        let counted: Vec<u8> = (1..=40).collect();
        assert_eq!(challenge(&mut io).await[8..], counted);

        let (mut io, client_io) = duplex(1024);
        let _connecting = tokio::spawn(Connector::new(Counting(client())).connect(client_io));
        send(&mut io, &[b"#CHALLENGE#{sha256}", &[7; 40]]).await;
        receive(&mut io).await.unwrap();
        send(&mut io, &[b"#WELCOME#"]).await;
        // The second half is the mark.
        assert_eq!(challenge(&mut io).await[8..28], counted[..20]);
    }
}
