//! The Python of RHEL and its rebuilds, which is patched for FIPS, in both directions. It is played by a CPython that a
//! script patches in the same way.

use std::net::SocketAddr;

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::HandshakeErrorKind::{Malformed, Refused};
use tower_challenge::multiprocessing::{Client, KeyRing, MessageCodec, Server};
use tower_challenge::{Acceptor, Connector, HandshakeError, RefusalReason};

use crate::process::{Running, python, run, stderr, stdout};
use crate::support::{entries, key};

const KEY: &str = "secret password";

fn server() -> Server {
    Server::new(KeyRing::new(entries(&[KEY])).unwrap())
}

/// Runs a Python client of this server. Returns its output, and the outcome of the server.
async fn python_client(server: Server, key: &str) -> (String, Result<(), HandshakeError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut command = python("multiprocessing_rhel.py");
    command.args(["client", &port, key]);
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
        Err(error) => Err(error),
    };
    let output = client.await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (stdout(&output).to_owned(), outcome)
}

#[tokio::test]
#[ignore = "needs python3"]
async fn python_of_rhel_as_a_client() {
    let (accepted, refused) = ("accepted\ndone\n", "failed AuthenticationError\n");
    for server in [server().allow_legacy_sha256(), server().allow_legacy_md5().allow_legacy_sha256()] {
        let (output, outcome) = python_client(server.clone(), KEY).await;
        assert_eq!(output, accepted);
        outcome.unwrap();

        let (output, outcome) = python_client(server, "wrong").await;
        assert_eq!(output, refused);
        assert_eq!(outcome.unwrap_err().refusal_reason(), Some(RefusalReason::NoMatchingKey));
    }
    for server in [server(), server().allow_legacy_md5()] {
        let (output, outcome) = python_client(server, KEY).await;
        assert_eq!(output, refused);
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(RefusalReason::LegacySha256)));
        assert!(error.to_string().contains("allow_legacy_sha256"), "{error}");
    }
}

/// Connects to a Python listener. Returns its output, and the outcome of this client. The listener echoes messages.
async fn python_listener(client: Client) -> (String, Result<(), HandshakeError>) {
    let mut listener = Running::start(python("multiprocessing_rhel.py").args(["listener", KEY]));
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
        Err(error) => Err(error),
    };
    (listener.line(), outcome)
}

#[tokio::test]
#[ignore = "needs python3"]
async fn python_of_rhel_as_a_listener() {
    let client = |text: &str| Client::new(&key(text));
    for client in [client(KEY).allow_legacy_sha256(), client(KEY).allow_legacy_sha256().allow_legacy_md5()] {
        let (output, outcome) = python_listener(client).await;
        assert_eq!(output, "accepted");
        outcome.unwrap();
    }

    let (output, outcome) = python_listener(client("wrong").allow_legacy_sha256()).await;
    assert_eq!(output, "failed AuthenticationError");
    assert_eq!(outcome.unwrap_err().kind(), Refused);

    let (output, outcome) = python_listener(client(KEY)).await;
    assert!(output.starts_with("failed"), "{output}");
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Malformed);
    assert!(error.to_string().contains("allow_legacy_sha256"), "{error}");

    let (output, outcome) = python_listener(client(KEY).allow_legacy_md5()).await;
    assert_eq!(output, "failed AuthenticationError");
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Refused);
    assert!(error.to_string().contains("allow_legacy_sha256"), "{error}");
}
