//! A server that lets in who holds a key, and prints what happens.
//!
//! ```text
//! cargo run --example server -- --echo
//! ```

#[path = "shared/seconds.rs"]
mod seconds;
mod shared;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use clap::Parser;
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{BytesCodec, Decoder, Encoder};
use tower::ServiceBuilder;
use tower_challenge::handshake::Accept;
use tower_challenge::key::PrepareKey;
use tower_challenge::mechanism::{self, Mechanism, PeerOf};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, Identity, KeyFile, KeyId, KeyRing, mutual,
    one_way, serve,
};

use self::seconds::seconds;

#[derive(Parser)]
#[command(about = "Lets in who holds a key, and prints what happens")]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR")]
    listen: String,

    #[command(flatten)]
    credentials: shared::Credentials,

    /// Send back what arrives
    #[arg(long)]
    echo: bool,

    /// How long a handshake may take
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let credentials = &args.credentials;
    match credentials.mechanism {
        shared::Mechanism::OneWay => {
            run(&args, one_way::Server::new(ring(credentials)?), BytesCodec::new).await
        }
        shared::Mechanism::Mutual => {
            let mechanism = mutual::Server::new(ring(credentials)?, credentials.audience()?);
            run(&args, mechanism, BytesCodec::new).await
        }
        #[cfg(feature = "multiprocessing")]
        shared::Mechanism::Multiprocessing => {
            use tower_challenge::multiprocessing::{MessageCodec, Server};

            let mechanism = Server::new(ring(credentials)?);
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            run(&args, mechanism, MessageCodec::new).await
        }
    }
}

/// The keys, which follow the key file if there is one.
fn ring<K>(credentials: &shared::Credentials) -> Result<KeyRing<K>, Box<dyn Error>>
where
    K: PrepareKey + Send + Sync + 'static,
{
    let ring = KeyRing::new(credentials.load()?)?;
    if let Some(path) = &credentials.key_file {
        let ring = ring.clone();
        let follow = KeyFile::new(path).follow(
            Duration::from_secs(1),
            move |keys| ring.replace(keys),
            |outcome| match outcome {
                Ok(count) => println!("{count} keys"),
                Err(error) => eprintln!("error: {error}; the keys stay as they were"),
            },
        );
        tokio::spawn(follow);
    }
    Ok(ring)
}

async fn run<M, C>(args: &Args, mechanism: M, codec: fn() -> C) -> Result<(), Box<dyn Error>>
where
    M: Mechanism<Role = mechanism::Server> + Send + Sync + 'static,
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<BytesMut, Error = io::Error> + Send + 'static,
    PeerOf<M>: Named + Send + 'static,
    Accept<Connection<TcpStream>, M>: Send + 'static,
{
    let listener = TcpListener::bind(&args.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let echo = args.echo;
    let service = ServiceBuilder::new()
        .map_request(|connection: Connection<TcpStream>| {
            println!("{} connected", connection.addr());
            connection
        })
        .layer(ChallengeLayer::new(mechanism).timeout(args.timeout))
        .map_request(|stream: Authenticated<Connection<TcpStream>, PeerOf<M>>| {
            println!("{} accepted: key {}", stream.get_ref().addr(), stream.peer().key_id());
            stream
        })
        .service_fn(move |stream| session(stream, codec(), echo));

    serve(listener, service)
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        // For who is in a hurry, and asks a second time.
        .with_forced_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(1))
        .on_error(print_error)
        .await?;
    println!("stopped");
    Ok(())
}

/// A session in messages of `codec`, or in whatever portions the bytes arrive.
async fn session<P, C>(
    stream: Authenticated<Connection<TcpStream>, P>,
    codec: C,
    echo: bool,
) -> io::Result<()>
where
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<BytesMut, Error = io::Error>,
{
    let addr = *stream.get_ref().addr();
    let mut messages = stream.into_framed(codec);
    while let Some(message) = messages.next().await {
        let message = match message {
            // A peer that goes without a word has gone all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            message => message?,
        };
        // In `Debug` form, so that no peer can write to this terminal what it likes.
        println!("{addr} says: {:?}", String::from_utf8_lossy(&message));
        if echo {
            messages.send(message).await?;
        }
    }
    println!("{addr} closed");
    Ok(())
}

fn print_error(error: ServeError<AcceptError<io::Error>, SocketAddr>) {
    match error {
        ServeError::Connection { addr, error: AcceptError::Handshake(error) } => {
            println!("{addr} refused: {error}");
        }
        ServeError::Connection { addr, error: AcceptError::Service(error) } => {
            println!("{addr} closed: {error}");
        }
        error => println!("{error}"),
    }
}

/// A peer whose key has a name, in whichever mechanism.
trait Named {
    fn key_id(&self) -> &KeyId;
}

impl Named for Identity {
    fn key_id(&self) -> &KeyId {
        self.key_id()
    }
}

impl Named for mutual::Peer {
    fn key_id(&self) -> &KeyId {
        self.identity().key_id()
    }
}
