//! CPython's `multiprocessing.connection`, in both directions, with every version that is installed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::HandshakeErrorKind::{Malformed, Refused, ServerNotAuthenticated, UnexpectedEof};
use tower_challenge::multiprocessing::{Client, KeyRing, MessageCodec, Server};
use tower_challenge::{Acceptor, Connector, HandshakeErrorKind};

use crate::process::{Running, example, run, script, stderr, stdout};
use crate::support::{entries, key};

const KEY: &str = "secret password";

/// Returns every CPython of pyenv and of the path, by version. Fails unless there is one of 3.11 or older and one of
/// 3.12 or newer, since half of the wire would not be tested.
fn pythons() -> BTreeMap<(u32, u32, u32), PathBuf> {
    let mut candidates: Vec<PathBuf> = ["python3".into(), "python2".into()].into();
    candidates.extend((6..20).map(|minor| format!("python3.{minor}").into()));
    if let Ok(root) = Command::new("pyenv").arg("root").output() {
        let versions = PathBuf::from(stdout(&root).trim()).join("versions");
        let installed = std::fs::read_dir(versions).into_iter().flatten().flatten();
        candidates.extend(installed.map(|version| version.path().join("bin/python")));
    }
    let code = "import sys; print(sys.implementation.name if sys.version_info > (3,) else 'cpython'); \
                print('\\n'.join(str(part) for part in sys.version_info[:3]))";
    let mut found = BTreeMap::new();
    for python in candidates {
        let Ok(output) = Command::new(&python).args(["-c", code]).output() else { continue };
        let lines: Vec<_> = stdout(&output).lines().collect();
        if let ["cpython", major, minor, micro] = lines[..] {
            let version = (major.parse().unwrap(), minor.parse().unwrap(), micro.parse().unwrap());
            found.entry(version).or_insert(python);
        }
    }
    println!("CPython {:?}", found.keys().collect::<Vec<_>>());
    let old = (3, 0, 0)..(3, 12, 0);
    assert!(found.keys().any(|version| old.contains(version)), "no CPython 3 up to 3.11 is installed");
    assert!(found.keys().any(|version| *version >= old.end), "no CPython from 3.12 on is installed");
    found
}

fn peer(python: &PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.arg(script("multiprocessing_peer.py")).args(args);
    command
}

fn server() -> Server {
    Server::new(KeyRing::new(entries(&[KEY])).unwrap())
}

/// Runs a Python client with this server, which echoes. Returns the output of the client and the server's outcome.
async fn python_client(
    python: &PathBuf,
    server: Server,
    key: &str,
) -> (String, Result<(), HandshakeErrorKind>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut command = peer(python, &["client", &port, key]);
    let client = tokio::task::spawn_blocking(move || run(&mut command, ""));
    let accepted = Acceptor::new(server).accept(listener.accept().await.unwrap().0).await;
    let outcome = match accepted {
        Ok(stream) => {
            assert_eq!(stream.peer().key_id(), &KEY);
            let mut messages = stream.into_framed(MessageCodec::new());
            while let Some(message) = messages.next().await {
                messages.send(message.unwrap()).await.unwrap();
            }
            Ok(())
        }
        Err(error) => Err(error.kind()),
    };
    let output = client.await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (stdout(&output).to_owned(), outcome)
}

#[tokio::test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
async fn accepts_python_clients() {
    let (accepted, refused) = ("accepted\ndone\n", "failed AuthenticationError\n");
    for (version, python) in &pythons() {
        let modern = *version >= (3, 12, 0);
        let (output, outcome) = python_client(python, server(), KEY).await;
        let expected = if modern { (accepted, Ok(())) } else { (refused, Err(Refused)) };
        assert_eq!((output.as_str(), outcome), expected, "{version:?}");
        let (output, outcome) = python_client(python, server().allow_legacy_md5(), KEY).await;
        assert_eq!((output.as_str(), outcome), (accepted, Ok(())), "{version:?} with legacy MD5");
        let (output, outcome) = python_client(python, server().allow_legacy_md5(), "wrong").await;
        assert_eq!((output.as_str(), outcome), (refused, Err(Refused)), "{version:?} with a wrong key");
    }
}

/// Runs a Python listener, which echoes, with this client. Returns the output of the listener and the client's outcome.
async fn python_listener(python: &PathBuf, client: Client) -> (String, Result<(), HandshakeErrorKind>) {
    let mut listener = Running::start(&mut peer(python, &["listener", KEY]));
    let addr = SocketAddr::from(([127, 0, 0, 1], listener.line().parse().unwrap()));
    let connected = Connector::new(client).connect(TcpStream::connect(addr).await.unwrap()).await;
    let outcome = match connected {
        Ok(stream) => {
            let mut messages = stream.into_framed(MessageCodec::new());
            for message in [&b"hello"[..], b"", &vec![b'x'; 100_000]] {
                messages.send(message).await.unwrap();
                assert_eq!(messages.next().await.unwrap().unwrap(), message);
            }
            Ok(())
        }
        Err(error) => Err(error.kind()),
    };
    (listener.line(), outcome)
}

#[tokio::test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
async fn connects_to_python_listeners() {
    for (version, python) in &pythons() {
        let modern = *version >= (3, 12, 0);
        let (output, outcome) = python_listener(python, Client::new(&key(KEY))).await;
        if modern {
            assert_eq!((output.as_str(), outcome), ("accepted", Ok(())), "{version:?}");
        } else {
            assert_eq!(outcome, Err(Malformed), "{version:?}: a challenge of 20 bytes is not answered");
            assert!(output.starts_with("failed"), "{output}");
        }
        let (output, outcome) = python_listener(python, Client::new(&key(KEY)).allow_legacy_md5()).await;
        assert_eq!((output.as_str(), outcome), ("accepted", Ok(())), "{version:?} with legacy MD5");
        let (output, outcome) = python_listener(python, Client::new(&key("wrong")).allow_legacy_md5()).await;
        let expected = ("failed AuthenticationError", Err(Refused));
        assert_eq!((output.as_str(), outcome), expected, "{version:?} with a wrong key");
    }
}

/// The relay attack of the documentation succeeds against CPython's own clients, in one process or two.
#[test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
fn rogue_listener_fools_cpython_clients() {
    let (version, python) = pythons().pop_last().unwrap();
    let mut rogue = Running::start(&mut peer(&python, &["rogue"]));
    let port = rogue.line();
    let _first = Running::start(&mut peer(&python, &["client", &port, KEY]));
    assert_eq!(rogue.line(), "challenged");
    let _second = Running::start(&mut peer(&python, &["client", &port, KEY]));
    assert_eq!(rogue.line(), "fooled", "CPython {version:?}");
}

/// The attack fails against clients of this crate, in the same process or in another one.
#[tokio::test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
async fn rogue_listener_does_not_fool_this_client() {
    let (_, python) = pythons().pop_last().unwrap();
    for other_process in [false, true] {
        let mut rogue = Running::start(&mut peer(&python, &["rogue"]));
        let port = rogue.line();
        let addr = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
        let connector = Connector::new(Client::new(&key(KEY)));
        let connect = move |connector: Connector<Client>| async move {
            connector.connect(TcpStream::connect(addr).await.unwrap()).await.map(drop).unwrap_err().kind()
        };
        let first = tokio::spawn(connect(connector.clone()));
        let (rogue, line) = tokio::task::spawn_blocking(move || {
            let line = rogue.line();
            (rogue, line)
        })
        .await
        .unwrap();
        let mut rogue = rogue;
        assert_eq!(line, "challenged");
        if other_process {
            let mut client = example("client");
            client.env("CHALLENGE_KEY", KEY).args(["--mechanism", "multiprocessing", "--connect"]);
            client.arg(addr.to_string());
            let output = run(&mut client, "");
            assert_eq!(output.status.code(), Some(1));
            let expected = format!("error: {addr}: the server did not prove that it holds the key");
            assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
        } else {
            assert_eq!(connect(connector).await, ServerNotAuthenticated);
        }
        assert_eq!(rogue.line(), "not answered");
        assert_eq!(first.await.unwrap(), UnexpectedEof);
    }
}

/// The attack succeeds if a CPython client with the same key connects to the rogue listener as well, and answers.
#[tokio::test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
async fn rogue_listener_relays_to_cpython_client() {
    let (version, python) = pythons().pop_last().unwrap();
    let mut rogue = Running::start(&mut peer(&python, &["rogue"]));
    let port = rogue.line();
    let addr = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let connector = Connector::new(Client::new(&key(KEY)));
    let client =
        tokio::spawn(async move { connector.connect(TcpStream::connect(addr).await.unwrap()).await });
    let outcome = tokio::task::spawn_blocking(move || {
        assert_eq!(rogue.line(), "challenged");
        let _second = Running::start(&mut peer(&python, &["client", &port, KEY]));
        rogue.line()
    });
    assert_eq!(outcome.await.unwrap(), "fooled", "CPython {version:?}");
    client.await.unwrap().unwrap();
}

/// The example server with a Python client, and the example client with a Python listener.
#[test]
#[ignore = "needs CPython up to 3.11 and from 3.12 on"]
fn examples_speak_to_every_python() {
    for (version, python) in &pythons() {
        let mode = ["--mechanism", "multiprocessing", "--legacy-md5"];
        let mut server = Running::start(example("server").env("CHALLENGE_KEY", KEY).args(mode).args([
            "--listen",
            "127.0.0.1:0",
            "--echo",
        ]));
        let port = server.line().rsplit(':').next().unwrap().to_owned();
        let output = run(&mut peer(python, &["client", &port, KEY]), "");
        assert_eq!(stdout(&output), "accepted\ndone\n", "{version:?}: {}", stderr(&output));
        server.line_with("accepted: key default");

        let mut listener = Running::start(&mut peer(python, &["listener", KEY]));
        let addr = format!("127.0.0.1:{}", listener.line());
        let mut client = example("client");
        client.env("CHALLENGE_KEY", KEY).args(mode).args(["--connect", &addr]);
        let output = run(&mut client, "hello\nworld\n");
        assert_eq!(stdout(&output), "hello\nworld\n", "{version:?}: {}", stderr(&output));
        assert_eq!((listener.line().as_str(), listener.line().as_str()), ("accepted", "done"));
    }
}
