//! A peer in Python's standard library, in both directions.
#![cfg(feature = "net")]

#[path = "support/process.rs"]
mod process;
mod support;

use std::net::SocketAddr;

use process::{Running, python, run, stderr, stdout};
use support::{ACCEPTED, REFUSED, acceptor, connector};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::{HandshakeErrorKind, one_way};

const KEY: &str = "This is key!";

#[tokio::test]
#[ignore = "needs python3"]
async fn a_python_client_of_our_server() {
    for (key, verdict, echoed) in [(KEY, ACCEPTED, "hello"), ("wrong", REFUSED, "")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let client = tokio::task::spawn_blocking(move || {
            run(python("classic.py").args(["client", "127.0.0.1", &port, key]), "hello")
        });
        let accepted = acceptor(&[KEY]).accept(listener.accept().await.unwrap().0).await;
        match accepted {
            Ok(mut stream) => {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
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
async fn our_client_of_a_python_server() {
    for (key, says) in [(KEY, "accepted"), ("wrong", "refused")] {
        let mut server = Running::start(python("classic.py").args(["server", KEY]));
        let addr = SocketAddr::from(([127, 0, 0, 1], server.line().parse().unwrap()));
        let connected = connector(key).connect(TcpStream::connect(addr).await.unwrap()).await;
        assert_eq!(server.line(), says);
        match connected {
            Ok(mut stream) => {
                assert_eq!(*stream.peer(), one_way::UnprovenServer);
                stream.write_all("grüße".as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.unwrap();
                assert_eq!(said, "GRüßE".as_bytes());
            }
            Err(error) => assert_eq!(error.kind(), HandshakeErrorKind::Refused),
        }
    }
}

/// The tutorial's client, the example server, and the tutorial's key that both fall back to.
#[test]
#[ignore = "needs python3"]
fn a_python_client_of_the_example_server() {
    let mut server = Running::start(process::example("server").args(["--listen", "127.0.0.1:0", "--echo"]));
    let listening = server.line();
    let port = listening.rsplit(':').next().unwrap();
    for (key, expected, told) in [
        (KEY, "验证成功\nhello", "accepted: key default"),
        ("wrong", "验证失败\n", "refused: handshake refused"),
    ] {
        let output = run(python("classic.py").args(["client", "127.0.0.1", port, key]), "hello");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), expected);
        assert!(server.line_with(told).ends_with(told));
    }
}
