//! SCRAM-SHA-256 (RFC 7677) through the `rsasl` crate. Each message has a length prefix.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::mechanisms::scram::properties::{SaltedPassword, ScramStoredPassword};
use rsasl::mechanisms::scram::tools::{derive_keys, hash_password};
use rsasl::prelude::{Mechname, SASLClient, SASLConfig, SASLServer, Session, SessionError, Validation};
use rsasl::property::{AuthId, Password};
use rsasl::validate::{Validate, ValidationError};
use sha2_of_rsasl::digest::Output;
use sha2_of_rsasl::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, FramedParts, LengthDelimitedCodec};

use crate::way::{Key, Result, Way, be_greeted, greet, in_time};

const MECHANISM: &[u8] = b"SCRAM-SHA-256";
const USER: &str = "k";
const SALT: &[u8] = b"salt of this user";
/// The minimum that RFC 7677 recommends for a server.
const ITERATIONS: u32 = 4096;

#[derive(Clone)]
pub(crate) struct Scram {
    server: Arc<SASLConfig>,
    client: Arc<SASLConfig>,
}

impl Scram {
    /// The client has only its password, and derives the keys from it for each connection.
    pub(crate) fn with_password(key: &Key) -> Self {
        Self::new(key, |password, _| Credentials::Password(password))
    }

    /// The client caches the derived keys.
    pub(crate) fn with_cached_keys(key: &Key) -> Self {
        Self::new(key, |_, salted| Credentials::Salted(salted))
    }

    fn new(key: &Key, credentials: fn(Key, Output<Sha256>) -> Credentials) -> Self {
        let mut salted = Output::<Sha256>::default();
        hash_password::<Sha256>(key, ITERATIONS, SALT, &mut salted);
        let (client_key, server_key) = derive_keys::<Sha256>(&salted);
        let stored = Stored { stored_key: Sha256::digest(client_key), server_key };
        let config = SASLConfig::builder().with_defaults().with_callback(stored).expect("a configuration");
        let credentials = credentials(*key, salted);
        let client =
            SASLConfig::builder().with_defaults().with_callback(credentials).expect("a configuration");
        Self { server: config, client }
    }
}

impl Way for Scram {
    async fn accept(self, io: TcpStream) -> Result<()> {
        let mut session = SASLServer::<Accepted>::new(self.server).start_suggested(mechanism())?;
        let io = in_time(exchange(&mut session, frames(io))).await?.into_inner();
        // The exchange ends without an error even if the proof is wrong, so the validation is checked.
        session.validation().ok_or("refused")?;
        greet(io).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        let mut session = SASLClient::new(self.client).start_suggested(&[mechanism()])?;
        let FramedParts { io, read_buf, .. } =
            in_time(exchange(&mut session, frames(io))).await?.into_parts();
        // The greeting may have arrived together with the server's last message.
        be_greeted(read_buf.as_ref().chain(io)).await
    }
}

fn mechanism() -> &'static Mechname {
    Mechname::parse(MECHANISM).expect("a name")
}

type Frames = Framed<TcpStream, LengthDelimitedCodec>;

fn frames(io: TcpStream) -> Frames {
    LengthDelimitedCodec::builder().max_frame_length(1024).new_framed(io)
}

/// Exchanges the messages of one side. The client sends the first one.
async fn exchange<V: Validation>(session: &mut Session<V>, mut io: Frames) -> Result<Frames> {
    let mut received = None;
    if !session.are_we_first() {
        received = Some(io.next().await.ok_or("closed early")??);
    }
    loop {
        let mut message = Vec::new();
        let state = session.step(received.as_deref(), &mut message)?;
        if state.has_sent_message() {
            io.send(Bytes::from(message)).await?;
        }
        if !state.is_running() {
            return Ok(io);
        }
        received = Some(io.next().await.ok_or("closed early")??);
    }
}

/// The keys that the server stores instead of the password.
struct Stored {
    stored_key: Output<Sha256>,
    server_key: Output<Sha256>,
}

/// The validation that the user's proof is correct.
struct Accepted;

impl Validation for Accepted {
    type Value = ();
}

impl SessionCallback for Stored {
    fn callback(
        &self,
        _: &SessionData,
        context: &Context<'_>,
        request: &mut Request<'_>,
    ) -> std::result::Result<(), SessionError> {
        if context.get_ref::<AuthId>() == Some(USER) {
            let stored = ScramStoredPassword::new(ITERATIONS, SALT, &self.stored_key, &self.server_key);
            request.satisfy::<ScramStoredPassword<'_>>(&stored)?;
        }
        Ok(())
    }

    fn validate(
        &self,
        _: &SessionData,
        _: &Context<'_>,
        validate: &mut Validate<'_>,
    ) -> std::result::Result<(), ValidationError> {
        validate.finalize::<Accepted>(());
        Ok(())
    }
}

enum Credentials {
    Password(Key),
    Salted(Output<Sha256>),
}

impl SessionCallback for Credentials {
    fn callback(
        &self,
        _: &SessionData,
        _: &Context<'_>,
        request: &mut Request<'_>,
    ) -> std::result::Result<(), SessionError> {
        request.satisfy::<AuthId>(USER)?;
        match self {
            Self::Password(password) => request.satisfy::<Password>(password)?,
            Self::Salted(salted) => request.satisfy::<SaltedPassword>(salted)?,
        };
        Ok(())
    }
}
