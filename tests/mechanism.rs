//! A mechanism that is defined outside the crate and differs from the classic one: the client speaks first, frames have
//! a length prefix, and the key of the client's id is looked up asynchronously during the handshake.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep};
use tokio_util::codec::{Decoder, Encoder};
use tower_challenge::HandshakeErrorKind::{KeySource, Malformed, Refused, UnexpectedEof};
use tower_challenge::mechanism::{
    ClientRole, Context, Handshake, Input, Mechanism, NoLookup, Reject, ServerRole, Start, Step,
    decode_eof_strict,
};
use tower_challenge::{Acceptor, Connector, HandshakeError};

use crate::support::hmac_md5;

/// Frames of at most 64 bytes with a length prefix of two bytes.
#[derive(Debug)]
struct Prefixed;

impl Decoder for Prefixed {
    type Item = Vec<u8>;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Vec<u8>>, HandshakeError> {
        let Some(len) = buf.get(..2).map(|len| usize::from(u16::from_be_bytes([len[0], len[1]]))) else {
            return Ok(None);
        };
        if len > 64 {
            return Err(HandshakeError::malformed("a frame of more than 64 bytes"));
        }
        if buf.len() < 2 + len {
            return Ok(None);
        }
        buf.advance(2);
        Ok(Some(buf.split_to(len).to_vec()))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Vec<u8>>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}

impl Encoder<Vec<u8>> for Prefixed {
    type Error = HandshakeError;

    fn encode(&mut self, message: Vec<u8>, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        buf.put_u16(message.len().try_into().unwrap());
        buf.put_slice(&message);
        Ok(())
    }
}

/// A key store whose lookups take a second. The lookup of the id "broken" fails.
#[derive(Clone)]
struct Store(Arc<HashMap<&'static str, &'static str>>);

type Found = Result<Option<&'static str>, &'static str>;

impl Store {
    fn find(&self, id: &[u8]) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        let found = match std::str::from_utf8(id) {
            Ok("broken") => Err("the store is out of order"),
            Ok(id) => Ok(self.0.get(id).copied()),
            Err(_) => Ok(None),
        };
        Box::pin(async move {
            sleep(Duration::from_secs(1)).await;
            found
        })
    }
}

impl Mechanism for Store {
    type Role = ServerRole;
    type Handshake = StoreHandshake;

    const NAME: &'static str = "store";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<StoreHandshake>, HandshakeError> {
        Ok(Start { codec: Prefixed, handshake: StoreHandshake::Id { store: self.clone() }, send: None })
    }
}

enum StoreHandshake {
    Id { store: Store },
    Answer { key: &'static str },
}

impl Handshake for StoreHandshake {
    type Codec = Prefixed;
    type Message = Vec<u8>;
    type Peer = &'static str;
    type Lookup = Pin<Box<dyn Future<Output = Found> + Send>>;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = 66;
    const MAX_SEND_LEN: usize = 66;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        match (&self, input) {
            (Self::Id { store }, Input::Frame(id)) => Ok(Step::LookUp(store.find(&id))),
            (Self::Id { .. }, Input::Found(Ok(Some(key)))) => {
                *self = Self::Answer { key };
                Ok(Step::Continue { send: Some(b"a nonce like no other".to_vec()) })
            }
            (Self::Id { .. }, Input::Found(Ok(None))) => {
                Err(Reject::with_message(HandshakeError::refused(), b"no".to_vec()))
            }
            (Self::Id { .. }, Input::Found(Err(error))) => {
                Err(HandshakeError::with_cause(KeySource, error).into())
            }
            (Self::Answer { key }, Input::Frame(answer)) => {
                if answer == hmac_md5(key.as_bytes(), b"a nonce like no other") {
                    Ok(Step::Complete { send: Some(b"yes".to_vec()), peer: key })
                } else {
                    Err(Reject::with_message(HandshakeError::refused(), b"no".to_vec()))
                }
            }
            (Self::Answer { .. }, Input::Found(_)) => unreachable!("there is one lookup"),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

/// A client with this id and this key.
struct IdClient(&'static str, &'static str);

impl Mechanism for IdClient {
    type Role = ClientRole;
    type Handshake = IdClientHandshake;

    const NAME: &'static str = "store";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<IdClientHandshake>, HandshakeError> {
        let handshake = IdClientHandshake { key: Some(self.1) };
        Ok(Start { codec: Prefixed, handshake, send: Some(self.0.as_bytes().to_vec()) })
    }
}

struct IdClientHandshake {
    key: Option<&'static str>,
}

impl Handshake for IdClientHandshake {
    type Codec = Prefixed;
    type Message = Vec<u8>;
    type Peer = ();
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;

    const MAX_RECV_LEN: usize = 66;
    const MAX_SEND_LEN: usize = 66;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match (self.key.take(), &frame[..]) {
            (_, b"no") => Err(HandshakeError::refused().into()),
            (Some(key), nonce) => Ok(Step::Continue { send: Some(hmac_md5(key.as_bytes(), nonce).to_vec()) }),
            (None, b"yes") => Ok(Step::Complete { send: None, peer: () }),
            (None, _) => Err(HandshakeError::malformed("neither yes nor no").into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

fn acceptor() -> Acceptor<Store> {
    Acceptor::new(Store(Arc::new(HashMap::from([("alice", "a"), ("bob", "b")]))))
}

#[tokio::test(start_paused = true)]
async fn looks_up_a_key_during_the_handshake() {
    for (id, key, server_error, client_error) in [
        ("alice", "a", None, None),
        ("bob", "b", None, None),
        ("bob", "a", Some(Refused), Some(Refused)),
        ("eve", "e", Some(Refused), Some(Refused)),
        ("broken", "n", Some(KeySource), Some(UnexpectedEof)),
    ] {
        let (client, server) = duplex(1);
        let begin = Instant::now();
        let (accepted, connected) =
            tokio::join!(acceptor().accept(server), Connector::new(IdClient(id, key)).connect(client));
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
        assert_eq!(connected.err().map(|error| error.kind()), client_error);
        match accepted {
            Ok(stream) => assert_eq!((*stream.peer(), server_error), (key, None)),
            Err(error) => assert_eq!(Some(error.kind()), server_error),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deadline_includes_the_lookup() {
    let (client, server) = duplex(64);
    let acceptor = acceptor().timeout(Duration::from_millis(900));
    let begin = Instant::now();
    let (accepted, connected) =
        tokio::join!(acceptor.accept(server), Connector::new(IdClient("alice", "a")).connect(client));
    let error = accepted.unwrap_err();
    // The peer is not at fault.
    assert_eq!(error.kind(), KeySource);
    let detail = "the lookup did not complete within the handshake's deadline";
    assert_eq!(error.to_string(), format!("no key available for the handshake: {detail}"));
    assert_eq!(connected.unwrap_err().kind(), UnexpectedEof);
    assert_eq!(begin.elapsed(), Duration::from_millis(900));
}

#[tokio::test(start_paused = true)]
async fn invalid_framing_closes_without_an_answer() {
    for (bytes, kind) in
        [(&b"\x00\x05ali"[..], UnexpectedEof), (b"\x00", UnexpectedEof), (b"\x00\x41", Malformed)]
    {
        let (mut client, server) = duplex(64);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(acceptor().accept(server).await.unwrap_err().kind(), kind);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(received.is_empty());
    }
}

/// A frame that follows the last message of the handshake is left to the application.
#[tokio::test(start_paused = true)]
async fn bytes_after_the_handshake_are_kept() {
    let (mut client, server) = duplex(256);
    let server = tokio::spawn(acceptor().accept(server));
    client.write_all(b"\x00\x05alice").await.unwrap();
    let mut nonce = [0; 23];
    client.read_exact(&mut nonce).await.unwrap();
    let answer = hmac_md5(b"a", &nonce[2..]);
    client.write_all(&[b"\x00\x10", &answer[..], b"\x00\x02hi"].concat()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    server.await.unwrap().unwrap().read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x00\x02hi");
}
