//! A mechanism from outside, of another shape than the classic one: the client speaks first, frames have a length in
//! front, and the key of the id that the client sent is looked up in the middle of the handshake, which may take a
//! while.

mod support;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use support::hmac_md5;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep};
use tokio_util::codec::{Decoder, Encoder};
use tower_challenge::HandshakeErrorKind::{ClosedEarly, KeySource, Malformed, Refused};
use tower_challenge::mechanism::{
    Client, Context, Handshake, Input, Mechanism, NoLookup, Reject, Server, Start, Step, whole_or_truncated,
};
use tower_challenge::{Acceptor, Connector, HandshakeError};

/// A length of two bytes, and as many bytes; at most 64.
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
        whole_or_truncated(self.decode(buf)?, buf)
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

/// Takes a second for each question, and knows "nobody" as the one about whom it fails.
#[derive(Clone)]
struct Store(Arc<HashMap<&'static str, &'static str>>);

type Found = Result<Option<&'static str>, &'static str>;

impl Store {
    fn find(&self, id: &[u8]) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        let found = match std::str::from_utf8(id) {
            Ok("nobody") => Err("the store is out of order"),
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
    type Role = Server;
    type Handshake = Asking;

    const NAME: &'static str = "store";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<Asking>, HandshakeError> {
        Ok(Start { codec: Prefixed, handshake: Asking::Id { store: self.clone() }, send: None })
    }
}

enum Asking {
    Id { store: Store },
    Answer { key: &'static str },
}

impl Handshake for Asking {
    type Codec = Prefixed;
    type Message = Vec<u8>;
    type Peer = &'static str;
    type Lookup = Pin<Box<dyn Future<Output = Found> + Send>>;

    const LONGEST_RECEIVED: usize = 66;
    const LONGEST_SENT: usize = 66;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        match (&self, input) {
            (Self::Id { store }, Input::Frame(id)) => Ok(Step::LookUp(store.find(&id))),
            (Self::Id { .. }, Input::Found(Ok(Some(key)))) => {
                *self = Self::Answer { key };
                Ok(Step::Continue { send: Some(b"a nonce like no other".to_vec()) })
            }
            (Self::Id { .. }, Input::Found(Ok(None))) => {
                Err(Reject::telling(HandshakeError::refused(), b"no".to_vec()))
            }
            (Self::Id { .. }, Input::Found(Err(error))) => {
                Err(HandshakeError::with_source(KeySource, error).into())
            }
            (Self::Answer { key }, Input::Frame(answer)) => {
                if answer == hmac_md5(key.as_bytes(), b"a nonce like no other") {
                    Ok(Step::Complete { send: Some(b"yes".to_vec()), peer: key })
                } else {
                    Err(Reject::telling(HandshakeError::refused(), b"no".to_vec()))
                }
            }
            (Self::Answer { .. }, Input::Found(_)) => unreachable!("asked once"),
        }
    }
}

struct Introducing(&'static str, &'static str);

impl Mechanism for Introducing {
    type Role = Client;
    type Handshake = Answering;

    const NAME: &'static str = "store";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<Answering>, HandshakeError> {
        let handshake = Answering { key: Some(self.1) };
        Ok(Start { codec: Prefixed, handshake, send: Some(self.0.as_bytes().to_vec()) })
    }
}

struct Answering {
    key: Option<&'static str>,
}

impl Handshake for Answering {
    type Codec = Prefixed;
    type Message = Vec<u8>;
    type Peer = ();
    type Lookup = NoLookup;

    const LONGEST_RECEIVED: usize = 66;
    const LONGEST_SENT: usize = 66;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(frame) = input;
        match (self.key.take(), &frame[..]) {
            (_, b"no") => Err(HandshakeError::refused().into()),
            (Some(key), nonce) => Ok(Step::Continue { send: Some(hmac_md5(key.as_bytes(), nonce).to_vec()) }),
            (None, b"yes") => Ok(Step::Complete { send: None, peer: () }),
            (None, _) => Err(HandshakeError::malformed("neither yes nor no").into()),
        }
    }
}

fn acceptor() -> Acceptor<Store> {
    Acceptor::new(Store(Arc::new(HashMap::from([("alice", "a"), ("bob", "b")]))))
}

#[tokio::test(start_paused = true)]
async fn a_key_is_looked_up_in_the_middle_of_the_handshake() {
    for (id, key, server_says, client_hears) in [
        ("alice", "a", None, None),
        ("bob", "b", None, None),
        ("bob", "a", Some(Refused), Some(Refused)),
        ("eve", "e", Some(Refused), Some(Refused)),
        ("nobody", "n", Some(KeySource), Some(ClosedEarly)),
    ] {
        let (client, server) = duplex(1);
        let begin = Instant::now();
        let (accepted, connected) =
            tokio::join!(acceptor().accept(server), Connector::new(Introducing(id, key)).connect(client));
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
        assert_eq!(connected.err().map(|error| error.kind()), client_hears);
        match accepted {
            Ok(stream) => assert_eq!((*stream.peer(), server_says), (key, None)),
            Err(error) => assert_eq!(Some(error.kind()), server_says),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_counts_against_the_deadline() {
    let (client, server) = duplex(64);
    let acceptor = acceptor().timeout(Duration::from_millis(900));
    let begin = Instant::now();
    let (accepted, connected) =
        tokio::join!(acceptor.accept(server), Connector::new(Introducing("alice", "a")).connect(client));
    let error = accepted.unwrap_err();
    // The peer has done all that it could.
    assert_eq!((error.kind(), error.to_string().as_str()), (KeySource, "no key for the handshake"));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the key was not looked up in time");
    assert_eq!(connected.unwrap_err().kind(), ClosedEarly);
    assert_eq!(begin.elapsed(), Duration::from_millis(900));
}

#[tokio::test(start_paused = true)]
async fn broken_framing_ends_in_a_close() {
    for (bytes, kind) in
        [(&b"\x00\x05ali"[..], ClosedEarly), (b"\x00", ClosedEarly), (b"\x00\x41", Malformed)]
    {
        let (mut client, server) = duplex(64);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(acceptor().accept(server).await.unwrap_err().kind(), kind);
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert!(said.is_empty());
    }
}

/// A frame behind the last one stays where it is, for whoever goes on.
#[tokio::test(start_paused = true)]
async fn what_follows_is_kept() {
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
