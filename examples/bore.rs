//! The handshake of bore (the `bore-cli` crate) as a mechanism of one's own, with the public API alone: a UUID as the
//! challenge, the hexadecimal HMAC-SHA256 of it as the answer, in JSON, with a NUL behind each message and no verdict.
//!
//! ```text
//! cargo run --example bore
//! ```

use std::marker::PhantomData;

use bytes::{BufMut as _, BytesMut};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio_util::codec::{Decoder, Encoder};
use tower_challenge::mechanism::{
    Client, Context, Handshake, Input, Mechanism, NoLookup, Reject, Server, Start, Step, whole_or_truncated,
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

/// JSON with a NUL behind it, at most 256 bytes; what it decodes to.
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
        serde_json::from_slice(&frame[..end]).map(Some).map_err(|_| HandshakeError::malformed("not bore's"))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<T>, HandshakeError> {
        whole_or_truncated(self.decode(buf)?, buf)
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

/// Either side's secret: bore keys its HMAC with the SHA-256 of the text.
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
pub(crate) struct Challenged(Hmac<Sha256>);

impl Mechanism for BoreServer {
    type Role = Server;
    type Handshake = Challenged;

    const NAME: &'static str = "bore";

    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Challenged>, HandshakeError> {
        let mut random = [0; 16];
        cx.fill_random(&mut random)?;
        let challenge = uuid::Builder::from_random_bytes(random).into_uuid();
        let handshake = Challenged(self.0.mac(challenge));
        Ok(Start { codec: Json(PhantomData), handshake, send: Some(Challenge::Challenge(challenge)) })
    }
}

impl Handshake for Challenged {
    type Codec = Json<Answer>;
    type Message = Challenge;
    type Peer = ();
    type Lookup = NoLookup;
    const LONGEST_RECEIVED: usize = 256;
    const LONGEST_SENT: usize = 64;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(Answer::Authenticate(digits)) = input;
        let mut tag = [0; 32];
        let decoded = base16ct::lower::decode(digits, &mut tag).map_err(|_| HandshakeError::refused())?;
        match self.0.clone().verify_slice(decoded) {
            Ok(()) => Ok(Step::Complete { send: None, peer: () }),
            Err(_) => Err(HandshakeError::refused().into()),
        }
    }
}

pub(crate) struct BoreClient(pub(crate) Bore);
pub(crate) struct Answering(Bore);

impl Mechanism for BoreClient {
    type Role = Client;
    type Handshake = Answering;

    const NAME: &'static str = "bore";

    fn start(&self, _: &mut Context<'_>) -> Result<Start<Answering>, HandshakeError> {
        Ok(Start { codec: Json(PhantomData), handshake: Answering(self.0.clone()), send: None })
    }
}

impl Handshake for Answering {
    type Codec = Json<Challenge>;
    type Message = Answer;
    type Peer = ();
    type Lookup = NoLookup;
    const LONGEST_RECEIVED: usize = 256;
    const LONGEST_SENT: usize = 128;

    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
        let Input::Frame(Challenge::Challenge(challenge)) = input;
        let tag = self.0.mac(challenge).finalize().into_bytes();
        let answer = Answer::Authenticate(base16ct::lower::encode_string(&tag));
        // There is no verdict to wait for: a refused client finds the connection closed.
        Ok(Step::Complete { send: Some(answer), peer: () })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (secret, outcome) in [("some secret string", "accepted"), ("another", "refused")] {
        let (client, server) = tokio::io::duplex(8);
        let acceptor = Acceptor::new(BoreServer(Bore::new(&Key::new("some secret string")?)));
        let connector = Connector::new(BoreClient(Bore::new(&Key::new(secret)?)));
        let (accepted, _) = tokio::join!(acceptor.accept(server), connector.connect(client));
        let found = if accepted.is_ok() { "accepted" } else { "refused" };
        println!("a client with the secret {secret:?} is {found}");
        assert_eq!(found, outcome);
    }
    Ok(())
}
