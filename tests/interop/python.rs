//! The classic wire with a peer in Python's standard library, in both directions.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::{HandshakeErrorKind, one_way};

use crate::process::{Running, example, python, run, stderr, stdout};
use crate::support::{ACCEPTED, REFUSED, acceptor, connector};

const KEY: &str = "This is key!";

#[tokio::test]
#[ignore = "needs python3"]
async fn accepts_python_client() {
    for (key, verdict, echoed) in [(KEY, ACCEPTED, "hello"), ("wrong", REFUSED, "")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let client = tokio::task::spawn_blocking(move || {
            run(python("classic.py").args(["client", "127.0.0.1", &port, key]), "hello")
        });
        let accepted = acceptor(&[KEY]).accept(listener.accept().await.unwrap().0).await;
        match accepted {
            Ok(mut stream) => {
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.unwrap();
                stream.write_all(&received).await.unwrap();
            }
            Err(error) => assert_eq!(error.kind(), HandshakeErrorKind::Refused),
        }
        let output = client.await.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), format!("{verdict}\n{echoed}"));
    }
}

#[tokio::test]
#[ignore = "needs python3"]
async fn connects_to_python_server() {
    for (key, outcome) in [(KEY, "accepted"), ("wrong", "refused")] {
        let mut server = Running::start(python("classic.py").args(["server", KEY]));
        let addr = SocketAddr::from(([127, 0, 0, 1], server.line().parse().unwrap()));
        let connected = connector(key).connect(TcpStream::connect(addr).await.unwrap()).await;
        assert_eq!(server.line(), outcome);
        match connected {
            Ok(mut stream) => {
                assert_eq!(*stream.peer(), one_way::ServerPeer);
                stream.write_all("grüße".as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut reply = Vec::new();
                stream.read_to_end(&mut reply).await.unwrap();
                assert_eq!(reply, "GRüßE".as_bytes());
            }
            Err(error) => assert_eq!(error.kind(), HandshakeErrorKind::Refused),
        }
    }
}

/// The tutorial's client with `server --tutorial`.
#[test]
#[ignore = "needs python3"]
fn example_server_accepts_python_client() {
    let mut server =
        Running::start(example("server").args(["--tutorial", "--listen", "127.0.0.1:0", "--echo"]));
    let listening = server.line();
    let port = listening.rsplit(':').next().unwrap();
    for (key, expected, log) in [
        (KEY, "验证成功\nhello", "accepted: key default"),
        ("wrong", "验证失败\n", "handshake refused: the answer matches none of the keys"),
    ] {
        let output = run(python("classic.py").args(["client", "127.0.0.1", port, key]), "hello");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), expected);
        assert!(server.line_with(log).ends_with(log));
    }
}

/// `client --tutorial` with the tutorial's server.
#[test]
#[ignore = "needs python3"]
fn example_client_connects_to_python_server() {
    for (key, outcome, expected) in [(KEY, "accepted", "HELLO\n"), ("wrong", "refused", "")] {
        let mut server = Running::start(python("classic.py").args(["server", key]));
        let addr = format!("127.0.0.1:{}", server.line());
        let output = run(example("client").args(["--tutorial", "--connect", &addr]), "hello\n");
        assert_eq!(server.line(), outcome);
        assert_eq!((stdout(&output), output.status.success()), (expected, key == KEY), "{}", stderr(&output));
    }
}
