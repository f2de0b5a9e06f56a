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

use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::{AnswerLayer, one_way};

/// How long a server may be silent, once all is sent, before there is nothing more to wait for.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(about = "Proves that it holds a key, then sends lines and prints what comes back")]
struct Args {
    /// Where to connect to
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR")]
    connect: String,

    #[command(flatten)]
    keys: shared::Keys,

    /// How to prove it
    #[arg(long, value_enum, default_value = "one-way")]
    mechanism: shared::Mechanism,
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
    let keys = args.keys.load()?;
    let mechanism = match args.mechanism {
        shared::Mechanism::OneWay => one_way::Client::new(keys[0].key()),
    };
    let connector =
        ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(TcpStream::connect::<String>);
    let stream = connector.oneshot(args.connect).await?;

    let (mut read, write) = tokio::io::split(stream);
    let mut sending = pin!(send(read_lines(), write));
    let mut sent = false;
    let mut chunk = [0; 4096];
    loop {
        tokio::select! {
            result = &mut sending, if !sent => match result {
                Ok(()) => sent = true,
                // What the server has said before it closed is still to be read.
                Err(error) if is_close(&error) => sent = true,
                Err(error) => return Err(error.into()),
            },
            result = read.read(&mut chunk) => match result {
                Ok(0) => break,
                Ok(len) => {
                    io::stdout().write_all(&chunk[..len])?;
                    io::stdout().flush()?;
                }
                Err(error) if is_close(&error) => break,
                Err(error) => return Err(error.into()),
            },
            () = tokio::time::sleep(SILENCE), if sent => break,
        }
    }
    Ok(())
}

async fn send(mut lines: mpsc::Receiver<Vec<u8>>, mut write: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        write.write_all(&line).await?;
    }
    write.shutdown().await
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
