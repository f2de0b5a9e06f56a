//! An end that is not authenticated, and an error, are passed on as a reset, and never as a clean end. What had arrived
//! before is delivered before that.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_challenge::{Acceptor, Connector, Key, KeyEntry, noise};

use crate::support::http::wait_for_metric;
use crate::support::relay::Relay;
use crate::support::service::read_until_reset;
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar};

/// What is sent in each direction before the failure: much more than the receivers' kernel takes before they read.
const SENT: usize = 256 * 1024;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    KillClient,
    KillServer,
    ResetByClient,
    ResetByTarget,
    /// The connection between the sidecars is closed. Of `mutual`, this is not an error.
    Closed,
    /// It is reset.
    Reset,
}

/// A session between a client and a target that the test plays.
struct Session {
    client: TcpStream,
    target: TcpStream,
    near: Sidecar,
    far: Sidecar,
    /// Between the sidecars, if there is one.
    relay: Option<Relay>,
}

/// A socket that receives little before it is read.
fn narrow() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

fn narrow_listener() -> TcpListener {
    let listener = narrow();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(16).unwrap();
    listener.into()
}

fn narrow_client(addr: &str) -> TcpStream {
    let client = narrow();
    client.connect(&addr.parse::<SocketAddr>().unwrap().into()).unwrap();
    client.into()
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Asserts that a connection is not reset while its end is not read.
fn assert_not_reset_yet(stream: &TcpStream, context: &str) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(100) {
        let error = stream.take_error().unwrap();
        assert!(error.is_none(), "{context}: reset before all was delivered: {error:?}");
        sleep(Duration::from_millis(2));
    }
}

fn assert_delivered_and_reset(mut stream: TcpStream, byte: u8, context: &str) {
    assert_not_reset_yet(&stream, context);
    let received = read_until_reset(&mut stream);
    assert_eq!(received.len(), SENT, "{context}");
    assert!(received.iter().all(|&other| other == byte), "{context}");
}

impl Session {
    fn open(mechanism: &str, has_relay: bool) -> Self {
        let listener = narrow_listener();
        let args = ["--mechanism", mechanism, "--admin", "127.0.0.1:0"];
        let far = Sidecar::server(&listener.local_addr().unwrap().to_string(), KEY, &args);
        let relay = has_relay.then(|| Relay::start(&far.addr));
        let near = Sidecar::client(relay.as_ref().map_or(&far.addr, |relay| &relay.addr), KEY, &args);
        let client = narrow_client(&near.addr);
        let (target, _) = listener.accept().unwrap();
        target.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { client, target, near, far, relay }
    }

    /// Sends data in both directions. It has reached the last sidecar of each, and is not read yet.
    fn fill(&mut self) {
        self.client.write_all(&vec![b'u'; SENT]).unwrap();
        self.target.write_all(&vec![b'd'; SENT]).unwrap();
        let name = "challenge_proxy_bytes_total";
        wait_for_metric(self.far.admin(), name, &["to_target"], SENT as u64);
        wait_for_metric(self.near.admin(), name, &["from_target"], SENT as u64);
    }
}

#[test]
fn failures_are_resets_after_what_had_arrived() {
    use Failure::{Closed, KillClient, KillServer, Reset, ResetByClient, ResetByTarget};

    for mechanism in MECHANISMS {
        for failure in [KillClient, KillServer, ResetByClient, ResetByTarget, Closed, Reset] {
            if mechanism == "mutual" && failure == Closed {
                continue;
            }
            let context = format!("{mechanism}, {failure:?}");
            let mut session = Session::open(mechanism, matches!(failure, Closed | Reset));
            session.fill();
            let Session { mut client, mut target, mut near, mut far, relay } = session;
            match failure {
                KillClient => {
                    near.running.kill();
                    assert_delivered_and_reset(target, b'u', &context);
                    read_until_reset(&mut client);
                }
                KillServer => {
                    far.running.kill();
                    assert_delivered_and_reset(client, b'd', &context);
                    read_until_reset(&mut target);
                }
                ResetByClient => {
                    reset(client);
                    assert_delivered_and_reset(target, b'u', &context);
                    let ended = near.ended();
                    assert!(ended.text("reason").starts_with("client: "), "{context}: {ended:?}");
                }
                ResetByTarget => {
                    reset(target);
                    assert_delivered_and_reset(client, b'd', &context);
                    let ended = far.ended();
                    assert!(ended.text("reason").starts_with("target: "), "{context}: {ended:?}");
                }
                Closed | Reset => {
                    let relay = relay.unwrap();
                    if failure == Closed {
                        relay.close();
                    } else {
                        relay.reset();
                    }
                    assert_delivered_and_reset(target, b'u', &context);
                    assert_delivered_and_reset(client, b'd', &context);
                    for (side, from) in [(&mut near, "server: "), (&mut far, "client: ")] {
                        let ended = side.ended();
                        assert!(ended.text("reason").starts_with(from), "{context}: {ended:?}");
                    }
                }
            }
        }
    }
}

/// Sends until nothing more is taken. Returns how many bytes were.
fn fill(mut stream: &TcpStream) -> usize {
    let chunk = vec![7; 64 * 1024];
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    // A write that times out may have sent a part.
    while let Ok(len) = stream.write(&chunk) {
        sent += len;
    }
    sent
}

/// All buffers are full in both directions, and so is the queue of what a sidecar has not read yet. What it has read is
/// not lost when it closes its connection.
#[test]
fn full_buffers_are_delivered() {
    for mechanism in MECHANISMS {
        for target_fails in [false, true] {
            let context = format!("{mechanism}, {target_fails}");
            let Session { client, target, mut near, mut far, .. } = Session::open(mechanism, false);
            let (up, down) = (fill(&client), fill(&target));
            assert!(up.min(down) > SENT, "{context}: {up} and {down}");
            let (side, direction, mut other) = if target_fails {
                reset(target);
                (&mut far, "from_target", client)
            } else {
                reset(client);
                (&mut near, "to_target", target)
            };
            let received = read_until_reset(&mut other).len();
            assert_eq!(received as u64, side.ended().number(direction), "{context}");
            assert!(received > SENT, "{context}: {received}");
        }
    }
}

/// After one direction was closed, a failure is still an error for the other one.
#[test]
fn failure_after_half_close_is_a_reset() {
    for mechanism in MECHANISMS {
        for target_closes_first in [false, true] {
            let context = format!("{mechanism}, {target_closes_first}");
            let Session { mut client, mut target, near: _near, far: _far, relay } =
                Session::open(mechanism, true);
            let (first, second) =
                if target_closes_first { (&mut target, &mut client) } else { (&mut client, &mut target) };
            first.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(second.read(&mut [0]).unwrap(), 0, "{context}");
            second.write_all(b"part").unwrap();
            first.read_exact(&mut [0; 4]).unwrap();
            relay.unwrap().reset();
            assert_eq!(read_until_reset(first), b"", "{context}");
        }
    }
}

fn key() -> Key {
    Key::from_hex(KEY).unwrap()
}

fn audience() -> noise::Audience {
    noise::Audience::new("test").unwrap()
}

/// A client of the library sees the failure of the target: there is no CLOSE.
#[tokio::test]
async fn no_close_after_reset_by_the_target() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Sidecar::server(&listener.local_addr().unwrap().to_string(), KEY, &[]);
    let tcp = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
    let connector = Connector::new(noise::Client::new("alice", &key(), audience()).unwrap());
    let mut stream = connector.connect(tcp).await.unwrap();
    let (mut target, _) = listener.accept().unwrap();
    target.write_all(b"part").unwrap();
    let mut part = [0; 4];
    stream.read_exact(&mut part).await.unwrap();
    assert_eq!(&part, b"part");
    reset(target);
    assert_eq!(stream.read(&mut part).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);

    // After a clean end there is one.
    let tcp = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
    let mut stream = connector.connect(tcp).await.unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(stream.read(&mut part).await.unwrap(), 0);
}

/// A server of the library sees the failure of the client.
#[tokio::test]
async fn no_close_after_reset_by_the_client() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Sidecar::client(&listener.local_addr().unwrap().to_string(), KEY, &[]);
    let keys = noise::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    let acceptor = Acceptor::new(noise::Server::new(keys, audience()));
    for is_reset in [true, false] {
        let mut plain = TcpStream::connect(&client.addr).unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(tcp).await.unwrap();
        plain.write_all(b"part").unwrap();
        let mut part = [0; 4];
        stream.read_exact(&mut part).await.unwrap();
        assert_eq!(&part, b"part");
        if is_reset {
            reset(plain);
            assert_eq!(stream.read(&mut part).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        } else {
            drop(plain);
            assert_eq!(stream.read(&mut part).await.unwrap(), 0);
            stream.shutdown().await.unwrap();
        }
    }
}
