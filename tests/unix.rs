//! The example `unix`, over real sockets: who holds the key, and whose process it is.
#![cfg(all(unix, feature = "net", feature = "mutual"))]

#[path = "../examples/unix/by_user.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example runs it all by itself")]
mod example;
#[path = "support/process.rs"]
mod process;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use example::{Owner, connect, listen, this_user};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tower_challenge::{HandshakeError, HandshakeErrorKind, Key, KeyEntry, KeyRing};

/// Another user than this one, and than root.
const ANOTHER: u32 = 65_534;

/// A server that has given the key `ours` to this user and `theirs` to another.
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
    let entry = |id, owner| KeyEntry::new(id, key(id)).unwrap().attach(Owner(owner));
    let keys = KeyRing::new([entry("ours", user), entry("theirs", ANOTHER)]).unwrap();
    let error = listen(&path, keys).unwrap();
    Server { directory, path, user, error }
}

impl Server {
    async fn hear(&self, key_id: &str, key: &Key) -> String {
        let mut stream = connect(&self.path, key_id, key).await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        heard
    }
}

#[tokio::test]
async fn the_right_key_in_the_right_hands() {
    let server = server();
    // Strangers that say nothing are in nobody's way.
    let _silent = UnixStream::connect(&server.path).await.unwrap();
    let user = server.user;
    assert_eq!(server.hear("ours", &key("ours")).await, format!("hello ours of user {user}"));
}

#[tokio::test]
async fn a_key_that_is_another_user_s() {
    let mut server = server();
    assert_eq!(server.hear("theirs", &key("theirs")).await, "");
    let expected = format!("key theirs is user {ANOTHER}'s, not user {}'s", server.user);
    assert_eq!(server.error.recv().await.unwrap(), expected);
}

#[tokio::test]
async fn a_wrong_key() {
    let mut server = server();
    let error = connect(&server.path, "ours", &key("wrong")).await.unwrap_err();
    assert_eq!(error.downcast::<HandshakeError>().unwrap().kind(), HandshakeErrorKind::Refused);
    assert!(server.error.recv().await.unwrap().ends_with("handshake refused"));
}

/// The right user, but without any handshake.
#[tokio::test]
async fn a_stranger() {
    let mut server = server();
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    let mut heard = vec![0; 35];
    stream.read_exact(&mut heard).await.unwrap();
    stream.write_all(b"hello? is anybody there?").await.unwrap();
    assert!(server.error.recv().await.unwrap().ends_with("malformed handshake message"));
    // A socket that is closed with something unread resets.
    assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)), "nothing behind the challenge");
}

#[test]
fn the_example_succeeds_and_says_so() {
    process::succeeds_and_says(
        "unix",
        &["the server says \"hello ours of user ", "got 0 bytes", "handshake refused"],
    );
}

/// Put in front of the reference implementation: the path of the socket is the environment variable `SOCKET`.
const UNIX_INSTEAD_OF_TCP: &str = "
import os, socket

class Unix(socket.socket):
    def sendall(self, data):
        # Unlike TCP's, a Unix socket that the peer has closed does not even take nothing.
        return super().sendall(data) if data else None

def connect(_):
    unix = Unix(socket.AF_UNIX)
    unix.connect(os.environ['SOCKET'])
    return unix

socket.create_connection = connect
";

/// A process of another user: the reference implementation, over a Unix socket.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and python3"]
async fn both_keys_in_the_hands_of_another_user() {
    let mut server = server();
    std::fs::set_permissions(server.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&server.path, PermissionsExt::from_mode(0o666)).unwrap();
    let script = [UNIX_INSTEAD_OF_TCP, include_str!("python/mutual.py")].concat();
    for (id, greeting) in [("ours", String::new()), ("theirs", format!("hello theirs of user {ANOTHER}"))] {
        let digits = base16ct::lower::encode_string(key(id).expose_secret());
        let mut command = Command::new("python3");
        command.args(["-c", &script, "connect", "socket:0", id, &digits, "greetings"]);
        command.env("SOCKET", &server.path).current_dir("/").uid(ANOTHER);
        let output = process::run(&mut command, "");
        let said = process::stdout(&output);
        assert!(said.starts_with("accepted; "), "{said}{}", process::stderr(&output));
        let (_, heard) = said.split_once('\n').unwrap();
        assert_eq!(heard, greeting, "{}", process::stderr(&output));
    }
    let expected = format!("key ours is user {}'s, not user {ANOTHER}'s", server.user);
    assert_eq!(server.error.recv().await.unwrap(), expected);
}
