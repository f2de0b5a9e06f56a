//! The handshake of bore (the `bore-cli` crate) as a mechanism of its own, written with the public API alone. The
//! server sends a UUID as the challenge; the client answers with its HMAC-SHA256 in hexadecimal digits. Each message is
//! JSON, followed by a NUL byte. There is no verdict.
//!
//! ```text
//! cargo run --example bore
//! ```

#[macro_use]
#[path = "../shared/print.rs"]
mod print;

use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes, BytesMut};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder};
use tower_challenge::mechanism::{
    ClientRole, Context, Handshake, Input, Mechanism, NoLookup, Reject, ServerRole, Start, Step,
    decode_eof_strict,
};
use tower_challenge::{Acceptor, Connector, HandshakeError, Key};
use uuid::Uuid;

#[derive(Serialize, Deserialize)]
pub(crate) enum Challenge {
    Challenge(Uuid),
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Answer {
    Authenticate(String),
}

/// A codec for JSON messages of at most 256 bytes, each followed by a NUL byte. It decodes to `T`.
pub(crate) struct Json<T>(PhantomData<fn() -> T>);

impl<T> Json<T> {
    const MAX_LEN: usize = 256;
}

impl<T: DeserializeOwned> Decoder for Json<T> {
    type Item = T;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<T>, HandshakeError> {
        let Some(end) = buf.iter().take(Self::MAX_LEN + 1).position(|&byte| byte == 0) else {
            let fits = buf.len() <= Self::MAX_LEN;
            return if fits { Ok(None) } else { Err(HandshakeError::malformed("more than 256 bytes")) };
        };
        let frame = buf.split_to(end + 1);
        serde_json::from_slice(&frame[..end])
            .map(Some)
            .map_err(|_| HandshakeError::malformed("not a message of bore"))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<T>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}

impl<T, M: Serialize> Encoder<M> for Json<T> {
    type Error = HandshakeError;

    fn encode(&mut self, message: M, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        serde_json::to_writer(buf.writer(), &message).map_err(|_| HandshakeError::malformed("not JSON"))?;
        buf.put_u8(0);
        Ok(())
    }
}

/// The secret of either side. Bore keys its HMAC with the SHA-256 of the text.
#[derive(Clone)]
pub(crate) struct Bore(Hmac<Sha256>);

impl Bore {
    pub(crate) fn new(secret: &Key) -> Self {
        let hashed = Sha256::digest(secret.expose_secret());
        Self(Hmac::new_from_slice(&hashed).expect("HMAC takes keys of any length"))
    }

    fn mac(&self, challenge: Uuid) -> Hmac<Sha256> {
        self.0.clone().chain_update(challenge.as_bytes())
    }
}

pub(crate) struct BoreServer(pub(crate) Bore);
pub(crate) struct ServerHandshake(Hmac<Sha256>);

impl Mechanism for BoreServer {
    type Role = ServerRole;
    type Handshake = ServerHandshake;

    const NAME: &'static str = "bore";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<ServerHandshake>, HandshakeError> {
        let mut random = [0; 16];
        cx.fill_random(&mut random)?;
        let challenge = uuid::Builder::from_random_bytes(random).into_uuid();
        // nothing sent -> challenge sent
        let handshake = ServerHandshake(self.0.mac(challenge));
        Ok(Start { codec: Json(PhantomData), handshake, send: Some(Challenge::Challenge(challenge)) })
    }
}

impl Handshake for ServerHandshake {
    type Codec = Json<Answer>;
    type Message = Challenge;
    type Peer = ();
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;
    const MAX_RECV_LEN: usize = 256;
    const MAX_SEND_LEN: usize = 64;

    // answer received -> accepted or refused
    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(Answer::Authenticate(digits)) = input;
        let tag = Key::from_hex(digits).map_err(|_| HandshakeError::refused())?;
        // Compares in constant time.
        match self.0.clone().verify_slice(tag.expose_secret()) {
            Ok(()) => Ok(Step::Complete { send: None, peer: () }),
            Err(_) => Err(HandshakeError::refused().into()),
        }
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

pub(crate) struct BoreClient(pub(crate) Bore);
pub(crate) struct ClientHandshake(Bore);

impl Mechanism for BoreClient {
    type Role = ClientRole;
    type Handshake = ClientHandshake;

    const NAME: &'static str = "bore";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<ClientHandshake>, HandshakeError> {
        // nothing received -> challenge awaited
        Ok(Start { codec: Json(PhantomData), handshake: ClientHandshake(self.0.clone()), send: None })
    }
}

impl Handshake for ClientHandshake {
    type Codec = Json<Challenge>;
    type Message = Answer;
    type Peer = ();
    type Lookup = NoLookup;
    type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;
    const MAX_RECV_LEN: usize = 256;
    const MAX_SEND_LEN: usize = 128;

    // challenge received -> answer sent, complete
    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(Challenge::Challenge(challenge)) = input;
        let tag = self.0.mac(challenge).finalize().into_bytes();
        let answer = Answer::Authenticate(format!("{:x}", Bytes::copy_from_slice(&tag)));
        // The protocol has no verdict: a refused client finds the connection closed.
        Ok(Step::Complete { send: Some(answer), peer: () })
    }

    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
        (io, read_ahead)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (secret, expected) in [("some secret string", "accepted"), ("another", "refused")] {
        let (client, server) = tokio::io::duplex(8);
        let acceptor = Acceptor::new(BoreServer(Bore::new(&Key::new("some secret string")?)));
        let connector = Connector::new(BoreClient(Bore::new(&Key::new(secret)?)));
        let (accepted, _) = tokio::join!(acceptor.accept(server), connector.connect(client));
        let outcome = if accepted.is_ok() { "accepted" } else { "refused" };
        println!("a client with the secret {secret:?} is {outcome}");
        assert_eq!(outcome, expected);
    }
    Ok(())
}
