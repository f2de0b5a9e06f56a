//! A client that proves it holds a key, then sends lines and prints what comes back.
//!
//! ```text
//! cargo run --example client
//! ```

mod shared;

use std::error::Error;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Parser;
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::codec::{BytesCodec, Decoder, Encoder};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::mechanism::{self, Mechanism, PeerOf};
use tower_challenge::{AnswerLayer, Authenticated, KeyEntry, mutual, one_way};

/// How long a server may be silent, once all is sent, before there is nothing more to wait for.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(about = "Proves that it holds a key, then sends lines and prints what comes back")]
struct Args {
    /// Where to connect to
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR")]
    connect: String,

    #[command(flatten)]
    credentials: shared::Credentials,

    /// Which key of the key file to use; the first unless said
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let credentials = &args.credentials;
    let entry = choose(credentials.load()?, args.key_id.as_deref())?;
    match credentials.mechanism {
        shared::Mechanism::OneWay => {
            let stream = connect(args.connect, one_way::Client::new(entry.key())).await?;
            talk(stream, BytesCodec::new(), |line| line, b"").await
        }
        shared::Mechanism::Mutual => {
            let mechanism = mutual::Client::new(entry.id().clone(), entry.key(), credentials.audience()?)?;
            talk(connect(args.connect, mechanism).await?, BytesCodec::new(), |line| line, b"").await
        }
        #[cfg(feature = "multiprocessing")]
        shared::Mechanism::Multiprocessing => {
            use tower_challenge::multiprocessing::{Client, MessageCodec};

            let mechanism = Client::new(entry.key());
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            let stream = connect(args.connect, mechanism).await?;
            // The end of a line is not part of a message, and printed behind each.
            talk(stream, MessageCodec::new(), <[u8]>::trim_ascii_end, b"\n").await
        }
    }
}

fn choose(entries: Vec<KeyEntry>, id: Option<&str>) -> Result<KeyEntry, String> {
    let found = entries.into_iter().find(|entry| id.is_none_or(|id| entry.id() == id));
    found.ok_or_else(|| format!("no key with the id {}", id.unwrap_or_default()))
}

async fn connect<M>(addr: String, mechanism: M) -> Result<Authenticated<TcpStream, PeerOf<M>>, Box<dyn Error>>
where
    M: Mechanism<Role = mechanism::Client>,
{
    let connector =
        ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(TcpStream::connect::<String>);
    Ok(connector.oneshot(addr).await?)
}

/// Sends what `outgoing` makes of each line in messages of `codec`, and prints those that come, each with `line_end`.
async fn talk<P, C>(
    stream: Authenticated<TcpStream, P>,
    codec: C,
    outgoing: fn(&[u8]) -> &[u8],
    line_end: &[u8],
) -> Result<(), Box<dyn Error>>
where
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<Bytes, Error = io::Error>,
{
    let (mut write, mut read) = stream.into_framed(codec).split();
    let mut sending = pin!(async move {
        let mut lines = read_lines();
        while let Some(line) = lines.recv().await {
            write.send(Bytes::copy_from_slice(outgoing(&line))).await?;
        }
        write.close().await
    });
    let mut sent = false;
    loop {
        tokio::select! {
            result = &mut sending, if !sent => match result {
                Ok(()) => sent = true,
                // What the server has said before it closed is still to be read.
                Err(error) if is_close(&error) => sent = true,
                Err(error) => return Err(error.into()),
            },
            message = read.next() => match message {
                None => break,
                Some(Ok(message)) => print(&[&message, line_end].concat())?,
                Some(Err(error)) if is_close(&error) => break,
                Some(Err(error)) => return Err(error.into()),
            },
            () = tokio::time::sleep(SILENCE), if sent => break,
        }
    }
    Ok(())
}

fn print(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes)?;
    io::stdout().flush()
}

/// Lines of the standard input. In a thread of its own, which the process need not wait for when the server has closed.
fn read_lines() -> mpsc::Receiver<Vec<u8>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let prompt = io::stdin().is_terminal();
        loop {
            if prompt {
                eprint!(">>> ");
            }
            let mut line = Vec::new();
            match io::stdin().lock().read_until(b'\n', &mut line) {
                Ok(1..) if sender.blocking_send(line).is_ok() => {}
                _ => return,
            }
        }
    });
    lines
}

fn is_close(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
