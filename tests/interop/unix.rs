//! The example `unix` over real sockets: keys that are valid only for processes of their owner.
#![cfg(unix)]

#[path = "../../examples/unix/by_user.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has a `run`")]
mod example;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use example::{Owner, connect, listen, this_user};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tower_challenge::{HandshakeError, HandshakeErrorKind, Key, KeyEntry, KeyRing};

use crate::process;

/// A user that is neither the current one nor root.
const ANOTHER: u32 = 65_534;

/// A server on which the key `ours` belongs to the current user and `theirs` to another one.
struct Server {
    directory: TempDir,
    path: PathBuf,
    user: u32,
    error: mpsc::UnboundedReceiver<String>,
}

fn key(text: &str) -> Key {
    Key::new(format!("{text}, but of 16 bytes and more")).unwrap()
}

fn server() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let user = this_user(directory.path()).unwrap();
    let entry = |id, owner| KeyEntry::new(id, key(id)).unwrap().with_metadata(Owner(owner));
    let keys = KeyRing::new([entry("ours", user), entry("theirs", ANOTHER)]).unwrap();
    let error = listen(&path, keys).unwrap();
    Server { directory, path, user, error }
}

impl Server {
    /// Connects with this key and reads what the server sends.
    async fn receive(&self, key_id: &str, key: &Key) -> String {
        let mut stream = connect(&self.path, key_id, key).await.unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        received
    }
}

#[tokio::test]
async fn accepts_key_of_the_peer_s_user() {
    let server = server();
    // A silent peer does not delay others.
    let _silent = UnixStream::connect(&server.path).await.unwrap();
    let user = server.user;
    assert_eq!(server.receive("ours", &key("ours")).await, format!("hello ours of user {user}"));
}

#[tokio::test]
async fn rejects_key_of_another_user() {
    let mut server = server();
    assert_eq!(server.receive("theirs", &key("theirs")).await, "");
    let expected = format!("key theirs is user {ANOTHER}'s, not user {}'s", server.user);
    assert_eq!(server.error.recv().await.unwrap(), expected);
}

#[tokio::test]
async fn wrong_key_is_refused() {
    let mut server = server();
    let error = connect(&server.path, "ours", &key("wrong")).await.unwrap_err();
    assert_eq!(error.downcast::<HandshakeError>().unwrap().kind(), HandshakeErrorKind::Refused);
    let report = server.error.recv().await.unwrap();
    let expected = "handshake refused: the proof does not match: wrong key, audience or channel binding \
                    (claimed key id \"ours\")";
    assert!(report.ends_with(expected), "{report}");
}

#[tokio::test]
async fn right_user_without_handshake_is_refused() {
    let mut server = server();
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    let mut challenge = [0; 35];
    stream.read_exact(&mut challenge).await.unwrap();
    stream.write_all(b"hello? is anyone there?").await.unwrap();
    let report = server.error.recv().await.unwrap();
    assert!(report.contains("malformed handshake message: "), "{report}");
    assert!(report.ends_with("does the peer use another mechanism?"), "{report}");
    // The server closes with unread data, which may reset the connection.
    assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)), "nothing follows the challenge");
}

#[test]
fn example_output() {
    process::succeeds_and_says(
        "unix",
        &["the server says \"hello ours of user ", "got 0 bytes", "handshake refused"],
    );
}

/// Precedes the reference implementation and replaces its TCP by a Unix socket at the path `SOCKET`.
const UNIX_INSTEAD_OF_TCP: &str = "
import os, socket

class Unix(socket.socket):
    def sendall(self, data):
        # Unlike TCP, a Unix socket that the peer has closed fails even for an empty write.
        return super().sendall(data) if data else None

def connect(_):
    unix = Unix(socket.AF_UNIX)
    unix.connect(os.environ['SOCKET'])
    return unix

socket.create_connection = connect
";

/// The client is the reference implementation, in a process of another user.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and python3"]
async fn another_user_is_accepted_with_its_own_key_only() {
    let mut server = server();
    std::fs::set_permissions(server.directory.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&server.path, Permissions::from_mode(0o666)).unwrap();
    let script = [UNIX_INSTEAD_OF_TCP, include_str!("python/mutual.py")].concat();
    for (id, greeting) in [("ours", String::new()), ("theirs", format!("hello theirs of user {ANOTHER}"))] {
        let digits = base16ct::lower::encode_string(key(id).expose_secret());
        let mut command = Command::new("python3");
        command.args(["-c", &script, "connect", "socket:0", id, &digits, "greetings"]);
        command.env("SOCKET", &server.path).current_dir("/").uid(ANOTHER);
        let output = process::run(&mut command, "");
        let stdout = process::stdout(&output);
        assert!(stdout.starts_with("accepted; "), "{stdout}{}", process::stderr(&output));
        let (_, received) = stdout.split_once('\n').unwrap();
        assert_eq!(received, greeting, "{}", process::stderr(&output));
    }
    let expected = format!("key ours is user {}'s, not user {ANOTHER}'s", server.user);
    assert_eq!(server.error.recv().await.unwrap(), expected);
}
