//! The programs do not depend on the reader of their output: it may be gone, or stop to read.
#![cfg(unix)]

use std::io::Read;
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_challenge::mechanism::{ClientRole, Mechanism};
use tower_challenge::{Connector, Key, one_way};

use super::TUTORIAL_KEY;
use crate::process::{Running, example};

/// A line of a kilobyte.
const MESSAGE: &[u8] = &{
    let mut message = [b'm'; 1024];
    message[1023] = b'\n';
    message
};

/// Runs a session with an echo server.
async fn session<M>(addr: SocketAddr, mechanism: M) -> std::io::Result<()>
where
    M: Mechanism<Role = ClientRole>,
{
    let tcp = TcpStream::connect(addr).await?;
    let mut stream = Connector::new(mechanism).connect(tcp).await.map_err(std::io::Error::other)?;
    stream.write_all(MESSAGE).await?;
    stream.read_exact(&mut [0; MESSAGE.len()]).await?;
    Ok(())
}

async fn assert_serves<M>(addr: &str, mechanism: &M, count: usize)
where
    M: Mechanism<Role = ClientRole> + Clone,
{
    let addr = addr.parse().unwrap();
    let sessions = (0..count).map(|_| session(addr, mechanism.clone()));
    let mut sessions = futures::stream::iter(sessions).buffer_unordered(32);
    for number in 1..=count {
        let ended = timeout(Duration::from_secs(10), sessions.next()).await;
        ended.unwrap_or_else(|_| panic!("session {number} stalled")).unwrap().unwrap();
    }
}

/// Asserts that a program serves `count` sessions without a reader of its output, and ends on SIGTERM. The buffers
/// between it and its reader must not hold the lines of so many sessions.
async fn assert_serves_without_reader<M>(command: &mut Command, mechanism: &M, count: usize)
where
    M: Mechanism<Role = ClientRole> + Clone,
{
    // The reader has closed the pipes after the first lines, like `head -1`.
    let (mut server, addr, pipes) = Running::start_unread(command, "listening on ");
    drop(pipes);
    assert_serves(&addr, mechanism, 200).await;
    server.terminate();
    assert!(server.wait().success());

    // The reader keeps the pipes open and reads no more.
    let (mut server, addr, _pipes) = Running::start_unread(command, "listening on ");
    assert_serves(&addr, mechanism, count).await;
    server.terminate();
    let begin = Instant::now();
    assert!(server.wait().success());
    assert!(begin.elapsed() < Duration::from_secs(5), "ended after {:?}", begin.elapsed());

    // The reader goes on. It sees that it has missed something.
    let (mut server, addr, (mut stdout, _stderr)) = Running::start_unread(command, "listening on ");
    assert_serves(&addr, mechanism, count).await;
    let reading = std::thread::spawn(move || {
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        rest
    });
    assert_serves(&addr, mechanism, 10).await;
    server.terminate();
    assert!(server.wait().success());
    let rest = reading.join().unwrap();
    assert!(rest.contains(" lines dropped: the reader of this output is too slow\n"), "{rest}");
    assert!(rest.contains("\nstopped"), "{rest}");
}

fn tutorial() -> one_way::Client {
    one_way::Client::new(&Key::new(TUTORIAL_KEY).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_serves_without_reader() {
    let mut command = example("server");
    command.args(["--tutorial", "--listen", "127.0.0.1:0", "--echo"]);
    assert_serves_without_reader(&mut command, &tutorial(), 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observe_serves_without_reader() {
    let mut command = example("example-observe");
    command.args(["--tutorial", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    assert_serves_without_reader(&mut command, &tutorial(), 1_000).await;
}

/// What a program prints before it ends may have no reader, either.
#[test]
fn errors_without_reader_are_exit_codes() {
    for program in ["server", "client", "example-observe"] {
        let mut command = example(program);
        let command = command.stdout(closed_pipe()).stderr(closed_pipe());
        assert_eq!(command.status().unwrap().code(), Some(1), "{program} has no keys");
    }
}

/// Examples that print what happens, and end by themselves.
#[test]
fn self_contained_examples_without_reader() {
    for program in [
        "quickstart",
        "stack",
        "unix",
        "rpc",
        "bore",
        "example-axum",
        "example-hyper",
        "example-tls",
        "example-tonic",
    ] {
        let mut command = example(program);
        let status = command.stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }
}

/// Returns the write end of a pipe whose read end is closed.
fn closed_pipe() -> ChildStdin {
    let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let pipe = reader.stdin.take().unwrap();
    reader.wait().unwrap();
    pipe
}
