//! A server that accepts clients that hold a key, and prints what happens.
//!
//! ```text
//! (umask 077; echo "alice:$(openssl rand -hex 32)" > keys)
//! cargo run --example server -- --key-file keys --echo
//! ```

mod shared;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::BytesMut;
use clap::Parser;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{BytesCodec, Decoder, Encoder};
use tower::ServiceBuilder;
use tower_challenge::handshake::Accept;
use tower_challenge::key::PrepareKey;
use tower_challenge::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
#[cfg(feature = "noise")]
use tower_challenge::noise;
use tower_challenge::serve::ServeError;
use tower_challenge::transport::{Transport, TransportInfo};
use tower_challenge::{
    Authenticated, ChallengeLayer, Connection, Identity, KeyId, KeyRing, multiprocessing, mutual, one_way,
    serve,
};

use self::shared::BoxError;
use self::shared::admission::AdmissionArgs;
use self::shared::capacity::CapacityArgs;
use self::shared::credentials::{self, Credentials};
use self::shared::key_file::explain_reload;
use self::shared::output::{err, out};
use self::shared::probes::Probes;
use self::shared::program::{self, Stopping};
use self::shared::shutdown_signal::shutdown_signal;
use self::shared::values::{host_port, seconds};

/// How often the key file is checked for changes.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(about = "Accepts clients that hold a key, and prints what happens")]
#[command(name = "server", version, after_help = credentials::HELP)]
struct Args {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR", value_parser = host_port)]
    listen: String,

    #[command(flatten)]
    credentials: Credentials,

    /// Send back what arrives
    #[arg(long)]
    echo: bool,

    /// The deadline of a handshake
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,

    #[command(flatten)]
    capacity: CapacityArgs,

    #[command(flatten)]
    admission: AdmissionArgs,
}

fn main() -> ExitCode {
    program::run(run(&Args::parse()))
}

async fn run(args: &Args) -> Result<ExitCode, BoxError> {
    let mut stopping: Stopping = Box::pin(shutdown_signal());
    let credentials = &args.credentials;
    match credentials.mechanism() {
        credentials::Mechanism::Mutual => {
            let audience = credentials.audience()?;
            let mechanism = mutual::Server::new(ring(credentials, &mut stopping).await?, audience);
            serve_with(args, stopping, mechanism, BytesCodec::new).await
        }
        #[cfg(feature = "noise")]
        credentials::Mechanism::Noise => {
            let audience = credentials.audience()?;
            let mechanism = noise::Server::new(ring(credentials, &mut stopping).await?, audience);
            let mechanism = match credentials.suite() {
                Some(suite) => mechanism.suites([suite]),
                None => mechanism,
            };
            serve_with(args, stopping, mechanism, BytesCodec::new).await
        }
        #[cfg(not(feature = "noise"))]
        credentials::Mechanism::Noise => Err(credentials::WITHOUT_NOISE.into()),
        credentials::Mechanism::OneWay => {
            let mechanism = one_way::Server::new(ring(credentials, &mut stopping).await?);
            serve_with(args, stopping, mechanism, BytesCodec::new).await
        }
        credentials::Mechanism::Multiprocessing => {
            let mechanism = multiprocessing::Server::new(ring(credentials, &mut stopping).await?);
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            serve_with(args, stopping, mechanism, multiprocessing::MessageCodec::new).await
        }
    }
}

/// Loads the keys. If they come from a file, they are replaced whenever it changes.
async fn ring<K>(credentials: &Credentials, stopping: &mut Stopping) -> Result<KeyRing<K>, BoxError>
where
    K: PrepareKey + Send + Sync + 'static,
{
    let entries = credentials.load(stopping).await?;
    let ring = KeyRing::new(entries).map_err(|error| credentials.explain(error))?;
    if let Some(file) = credentials.key_file() {
        let ring = ring.clone();
        let watch = file.watch(
            WATCH_PERIOD,
            move |keys| ring.replace(keys),
            |outcome| match outcome {
                Ok(count) => out(format_args!("keys: {count}")),
                Err(error) => err(format_args!("error: {}; the keys are unchanged", explain_reload(&error))),
            },
        );
        tokio::spawn(watch);
    }
    Ok(ring)
}

async fn serve_with<M, C>(
    args: &Args,
    stopping: Stopping,
    mechanism: M,
    codec: fn() -> C,
) -> Result<ExitCode, BoxError>
where
    M: Mechanism<Role = ServerRole> + Send + Sync + 'static,
    // The connection itself, or a stream that encrypts it.
    StreamOf<M, Connection<TcpStream>>: Transport + Send + 'static,
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<BytesMut, Error = io::Error> + Send + 'static,
    PeerOf<M>: HasKeyId + Send + 'static,
    Accept<Connection<TcpStream>, M>: Send + 'static,
{
    let capacity = args.capacity.fit()?;
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(args.timeout)
        .ready_timeout(args.timeout)
        .admission(args.admission.build(capacity)?);
    let echo = args.echo;
    let service = ServiceBuilder::new()
        .layer(challenge)
        // Inside the challenge, so that unauthenticated peers do not count.
        .concurrency_limit(capacity.max_sessions)
        .service_fn(move |stream: Authenticated<StreamOf<M, _>, PeerOf<M>>| session(stream, codec(), echo));

    let listener = TcpListener::bind(&args.listen).await;
    let listener = listener.map_err(|error| format!("--listen {}: {error}", args.listen))?;
    out(format_args!("listening on {}", listener.local_addr()?));
    let mut probes = Probes::default();
    serve(listener, service)
        .max_connections(capacity.max_connections())
        .graceful_shutdown(stopping)
        // The second signal ends the sessions at once.
        .forced_shutdown(shutdown_signal())
        .shutdown_timeout(Duration::from_secs(1))
        .on_error(move |error| {
            if !probes.count(&error) {
                print_error(&error);
            }
        })
        .await?;
    out("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Runs a session in messages of `codec`; with `BytesCodec` in whatever portions the bytes arrive.
async fn session<IO, P, C>(stream: Authenticated<IO, P>, codec: C, echo: bool) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Transport + Unpin,
    P: HasKeyId,
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<BytesMut, Error = io::Error>,
{
    // What `serve` has set: the address and the token.
    let info = TransportInfo::from_stream(&stream);
    let (addr, shutdown) = (info.peer_addr.expect("an address"), info.shutdown.expect("a token"));
    out(format_args!("{addr} accepted: key {}", stream.peer().key_id()));
    let mut messages = stream.into_framed(codec);
    let mut closed = false;
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = shutdown.cancelled(), if !closed => {
                // The client then closes, too. Until then, it can be read.
                messages.close().await?;
                closed = true;
                continue;
            }
        };
        let Some(message) = message.transpose()? else { break };
        // `Debug` escapes control characters, which a peer could send to this terminal.
        out(format_args!("{addr} says: {:?}", String::from_utf8_lossy(&message)));
        if echo && !closed {
            messages.send(message).await?;
        }
    }
    if !closed {
        // Dropping the stream of `noise` would look to the client like a connection that was cut.
        messages.close().await?;
    }
    out(format_args!("{addr} closed"));
    Ok(())
}

/// Prints why a connection ended. For a refused peer this is the reason that the peer does not learn.
fn print_error(error: &ServeError<SocketAddr>) {
    match error {
        ServeError::Connection { addr, error: cause } if error.handshake_error().is_some() => {
            out(format_args!("{addr} {cause}"));
        }
        ServeError::Connection { addr, error } => out(format_args!("{addr} closed: {error}")),
        error => out(error),
    }
}

/// A peer that is known by the id of its key.
trait HasKeyId {
    fn key_id(&self) -> &KeyId;
}

impl HasKeyId for Identity {
    fn key_id(&self) -> &KeyId {
        self.key_id()
    }
}

impl HasKeyId for mutual::Peer {
    fn key_id(&self) -> &KeyId {
        self.identity().key_id()
    }
}

#[cfg(feature = "noise")]
impl HasKeyId for noise::Peer {
    fn key_id(&self) -> &KeyId {
        self.identity().key_id()
    }
}
