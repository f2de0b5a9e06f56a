//! A server that lets in who holds a key, and prints what happens.
//!
//! ```text
//! cargo run --example server -- --echo
//! ```

mod shared;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceBuilder;
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, Identity, KeyRing, one_way, serve,
};

#[derive(Parser)]
#[command(about = "Lets in who holds a key, and prints what happens")]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR")]
    listen: String,

    #[command(flatten)]
    keys: shared::Keys,

    /// How peers prove themselves
    #[arg(long, value_enum, default_value = "one-way")]
    mechanism: shared::Mechanism,

    /// Send back what arrives
    #[arg(long)]
    echo: bool,

    /// How long a handshake may take
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let keys = KeyRing::new(args.keys.load()?)?;
    let listener = TcpListener::bind(&args.listen).await?;
    println!("listening on {}", listener.local_addr()?);

    let mechanism = match args.mechanism {
        shared::Mechanism::OneWay => one_way::Server::new(keys),
    };
    let service = ServiceBuilder::new()
        .map_request(|connection: Connection<TcpStream>| {
            println!("{} connected", connection.addr());
            connection
        })
        .layer(ChallengeLayer::new(mechanism).timeout(args.timeout))
        .service_fn(move |stream| session(stream, args.echo));

    serve(listener, service)
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(1))
        .on_error(print_error)
        .await?;
    println!("stopped");
    Ok(())
}

async fn session(mut stream: Authenticated<Connection<TcpStream>, Identity>, echo: bool) -> io::Result<()> {
    let addr = *stream.get_ref().addr();
    println!("{addr} accepted: key {}", stream.peer().key_id());
    let mut chunk = [0; 4096];
    loop {
        let len = match stream.read(&mut chunk).await {
            Ok(0) => break,
            Ok(len) => len,
            // A peer that goes without a word has gone all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        };
        // In `Debug` form, so that no peer can write to this terminal what it likes.
        println!("{addr} says: {:?}", String::from_utf8_lossy(&chunk[..len]));
        if echo {
            stream.write_all(&chunk[..len]).await?;
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
