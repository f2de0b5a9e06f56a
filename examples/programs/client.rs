//! A client that proves that it holds a key, sends the lines of its standard input, and prints the replies.
//!
//! ```text
//! (umask 077; echo "alice:$(openssl rand -hex 32)" > keys)
//! echo hello | cargo run --example client -- --key-file keys
//! ```

mod shared;

use std::future::pending;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Parser;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{BytesCodec, Decoder, Encoder};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::mechanism::{ClientRole, Mechanism, PeerOf, StreamOf};
#[cfg(feature = "noise")]
use tower_challenge::noise;
use tower_challenge::{
    AnswerLayer, Authenticated, ConnectError, HandshakeErrorKind, multiprocessing, mutual, one_way,
};

use self::shared::BoxError;
use self::shared::credentials::{self, Credentials};
use self::shared::key_file::{find, key_id};
use self::shared::program::{self, Stopping};
use self::shared::values::target;

/// How long the client waits for further replies after it has sent everything, if the end of the stream proves nothing.
/// An authenticated end is waited for.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(
    about = "Proves that it holds a key, sends the lines of its standard input, and prints the replies"
)]
#[command(name = "client", version, after_help = credentials::HELP)]
struct Args {
    /// The server's address
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR", value_parser = target)]
    connect: String,

    #[command(flatten)]
    credentials: Credentials,

    /// The key of the key file to use, if not the first one
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
}

fn main() -> ExitCode {
    program::run(run(Args::parse()))
}

async fn run(args: Args) -> Result<ExitCode, BoxError> {
    let credentials = &args.credentials;
    let id = key_id(args.key_id.as_deref())?;
    // Without handlers for signals, which end the process at any time.
    let entries = credentials.load(&mut (Box::pin(pending()) as Stopping)).await?;
    let entry = find(&entries, id.as_ref()).map_err(|error| credentials.explain(error))?;
    match credentials.mechanism() {
        credentials::Mechanism::Mutual => {
            let mechanism = mutual::Client::from_entry(entry, credentials.audience()?);
            let mechanism = mechanism.map_err(|error| credentials.explain(error))?;
            talk(&args.connect, mechanism, Dialog::bytes()).await?;
        }
        #[cfg(feature = "noise")]
        credentials::Mechanism::Noise => {
            let audience = credentials.audience()?;
            let mechanism = noise::Client::from_entry(entry, audience);
            let mechanism = mechanism.map_err(|error| credentials.explain(error))?;
            let mechanism = match credentials.suite() {
                Some(suite) => mechanism.suite(suite),
                None => mechanism,
            };
            let dialog = Dialog { end_is_authenticated: true, ..Dialog::bytes() };
            talk(&args.connect, mechanism, dialog).await?;
        }
        #[cfg(not(feature = "noise"))]
        credentials::Mechanism::Noise => return Err(credentials::WITHOUT_NOISE.into()),
        credentials::Mechanism::OneWay => {
            let mechanism = one_way::Client::new(entry.key());
            talk(&args.connect, mechanism, Dialog::bytes()).await?;
        }
        credentials::Mechanism::Multiprocessing => {
            let mechanism = multiprocessing::Client::new(entry.key());
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            let dialog = Dialog {
                codec: multiprocessing::MessageCodec::new(),
                // A message does not include the line break, and one is printed after each message.
                outgoing: <[u8]>::trim_ascii_end,
                line_end: b"\n",
                end_is_authenticated: false,
            };
            talk(&args.connect, mechanism, dialog).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How the lines and the replies are sent.
struct Dialog<C> {
    codec: C,
    /// Applied to each line before it is sent as a message.
    outgoing: fn(&[u8]) -> &[u8],
    /// Printed after each reply.
    line_end: &'static [u8],
    /// Whether the stream tells the end that the server meant from a connection that was cut.
    end_is_authenticated: bool,
}

impl Dialog<BytesCodec> {
    fn bytes() -> Self {
        Self { codec: BytesCodec::new(), outgoing: |line| line, line_end: b"", end_is_authenticated: false }
    }
}

/// Connects, sends the lines and prints the replies. An error says which server it is about.
async fn talk<M, C>(addr: &str, mechanism: M, dialog: Dialog<C>) -> Result<(), BoxError>
where
    M: Mechanism<Role = ClientRole>,
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<Bytes, Error = io::Error>,
{
    let stream = connect(addr, mechanism).await?;
    run_dialog(stream, dialog).await.map_err(|error| format!("{addr}: {error}").into())
}

async fn connect<M>(
    addr: &str,
    mechanism: M,
) -> Result<Authenticated<StreamOf<M, TcpStream>, PeerOf<M>>, BoxError>
where
    M: Mechanism<Role = ClientRole>,
{
    let connector =
        ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(TcpStream::connect::<&str>);
    connector.oneshot(addr).await.map_err(|error| match error {
        ConnectError::Connect(error) => format!("cannot connect to {addr}: {error}").into(),
        ConnectError::Handshake(error) if error.kind() == HandshakeErrorKind::Refused => {
            format!("{addr}: {error}; the server's log says why").into()
        }
        error => format!("{addr}: {error}").into(),
    })
}

async fn run_dialog<IO, P, C>(stream: Authenticated<IO, P>, dialog: Dialog<C>) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    C: Decoder<Item = BytesMut, Error = io::Error> + Encoder<Bytes, Error = io::Error>,
{
    let Dialog { codec, outgoing, line_end, end_is_authenticated } = dialog;
    let (mut write, mut read) = stream.into_framed(codec).split();
    let mut sending = Box::pin(async {
        let mut lines = read_lines();
        while let Some(line) = lines.recv().await {
            write.send(Bytes::copy_from_slice(outgoing(&line))).await?;
        }
        // Shuts the stream down: nothing is missing.
        write.close().await
    });
    let mut sent = false;
    loop {
        tokio::select! {
            result = &mut sending, if !sent => match result {
                Ok(()) => sent = true,
                // The server has closed. What it sent before is still to be read.
                Err(error) if is_close(&error) => sent = true,
                Err(error) => return Err(error),
            },
            message = read.next() => match message {
                None => break,
                Some(Ok(message)) => print(&[&message, line_end].concat())?,
                Some(Err(error)) if is_close(&error) && !end_is_authenticated => break,
                Some(Err(error)) => return Err(error),
            },
            () = sleep(SILENCE), if sent && !end_is_authenticated => break,
        }
    }
    drop(sending);
    if !sent {
        // The server has closed first. It may not read any more.
        match timeout(SILENCE, write.close()).await {
            Ok(Err(error)) if !is_close(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Prints a reply. Blocks while the reader of the output is slow, so that the client reads no faster.
fn print(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes)?;
    io::stdout().flush()
}

/// Reads the lines of the standard input, in a thread of its own: if the server closes first, the process can end
/// without waiting for it.
fn read_lines() -> mpsc::Receiver<Vec<u8>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let prompt = io::stdin().is_terminal();
        loop {
            if prompt {
                let _ = write!(io::stderr(), ">>> ");
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
