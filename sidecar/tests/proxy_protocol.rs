//! The PROXY protocol: to the target, which the test plays, and from a load balancer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use ppp::v2::{Addresses, Header};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tower_challenge::{Connector, Key, noise};

use crate::process::Running;
use crate::support::http::metric;
use crate::support::service::{Service, assert_reset_without_a_byte, connect, echo, open};
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar};

/// The address from which the load balancer connects.
const BALANCER: &str = "127.0.0.50";

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (target, _) = listener.accept().unwrap();
    target.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    target
}

/// Reads a header of version 1 at the target, without its line end.
fn read_v1(target: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        target.read_exact(&mut byte).unwrap();
        line.extend(byte);
        assert!(line.len() <= 107, "the longest header of version 1");
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// The type and the value of a TLV.
type Tlv = (u8, Vec<u8>);

/// Reads a header of version 2 at the target. Returns the source and the destination, and the TLVs.
fn read_v2(target: &mut TcpStream) -> (Option<[SocketAddr; 2]>, Vec<Tlv>) {
    let mut header = vec![0; 16];
    target.read_exact(&mut header).unwrap();
    let len = usize::from(u16::from_be_bytes([header[14], header[15]]));
    header.resize(16 + len, 0);
    target.read_exact(&mut header[16..]).unwrap();
    let parsed = Header::try_from(&header[..]).unwrap();
    let (addresses, addresses_len) = match parsed.addresses {
        Addresses::IPv4(v4) => {
            let source = (v4.source_address, v4.source_port).into();
            (Some([source, (v4.destination_address, v4.destination_port).into()]), 12)
        }
        Addresses::IPv6(v6) => {
            let source = (v6.source_address, v6.source_port).into();
            (Some([source, (v6.destination_address, v6.destination_port).into()]), 36)
        }
        _ => (None, 0),
    };
    let mut tlvs = Vec::new();
    let mut rest = &header[16 + addresses_len..];
    while let [kind, high, low, after @ ..] = rest {
        let (value, next) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        tlvs.push((*kind, value.to_vec()));
        rest = next;
    }
    (addresses, tlvs)
}

fn key_id() -> Tlv {
    (0xE0, b"alice".to_vec())
}

/// Connects from this loopback address as a client of the library, after an optional header. The target is not needed
/// for that.
async fn connect_noise(
    source: &str,
    addr: &str,
    header: &[u8],
) -> (tower_challenge::Authenticated<noise::NoiseStream<tokio::net::TcpStream>, noise::ServerPeer>, SocketAddr)
{
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    let mut tcp = socket.connect(addr.parse().unwrap()).await.unwrap();
    let from = tcp.local_addr().unwrap();
    tcp.write_all(header).await.unwrap();
    let key = Key::from_hex(KEY).unwrap();
    let audience = noise::Audience::new("test").unwrap();
    let connector = Connector::new(noise::Client::new("alice", &key, audience).unwrap());
    (connector.connect(tcp).await.unwrap(), from)
}

/// Asserts that what the client sends arrives after the header.
async fn assert_data_follows(stream: &mut (impl tokio::io::AsyncWrite + Unpin), target: &mut TcpStream) {
    stream.write_all(b"data").await.unwrap();
    stream.flush().await.unwrap();
    let mut data = [0; 4];
    target.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"data");
}

#[tokio::test]
async fn target_learns_the_address_of_the_peer() {
    for mechanism in MECHANISMS {
        let (listener, target_addr) = listen();
        let args = ["--mechanism", mechanism, "--send-proxy-protocol"];
        let v1 = Sidecar::server(&target_addr, KEY, &[&args[..], &["v1"]].concat());
        let v2 = Sidecar::server(&target_addr, KEY, &[&args[..], &["v2"]].concat());
        for server in [&v1, &v2] {
            let mut client = Sidecar::client(&server.addr, KEY, &["--mechanism", mechanism]);
            let mut plain = connect(&client.addr);
            let mut target = accept(&listener);
            let port = server.addr.rsplit(':').next().unwrap();
            // The peer of the server is the client's sidecar, on a port that only the header tells.
            if server.addr == v1.addr {
                let header = read_v1(&mut target);
                let fields: Vec<_> = header.split(' ').collect();
                assert_eq!(fields[..4], ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"], "{header}");
                assert_ne!(fields[4], port);
                assert_eq!(fields[5], port);
            } else {
                let (addresses, tlvs) = read_v2(&mut target);
                let [source, destination] = addresses.unwrap();
                assert_eq!(source.ip().to_string(), "127.0.0.1");
                assert_ne!(source.port().to_string(), port);
                assert_eq!(destination.to_string(), server.addr);
                assert_eq!(tlvs, [key_id()]);
            }
            plain.get_mut().write_all(b"data").unwrap();
            let mut data = [0; 4];
            target.read_exact(&mut data).unwrap();
            assert_eq!(&data, b"data");
            drop((plain, target));
            // The header is no data of the session.
            assert_eq!(client.ended().number("to_target"), 4);
        }
    }
}

#[tokio::test]
async fn target_learns_the_source_of_a_client() {
    let (listener, target_addr) = listen();
    let mut v1 = Sidecar::server(&target_addr, KEY, &["--send-proxy-protocol", "v1"]);
    let (mut stream, from) = connect_noise("127.0.0.7", &v1.addr, b"").await;
    let mut target = accept(&listener);
    let port = v1.addr.rsplit(':').next().unwrap();
    let expected = format!("PROXY TCP4 127.0.0.7 127.0.0.1 {} {port}", from.port());
    assert_eq!(read_v1(&mut target), expected);
    assert_data_follows(&mut stream, &mut target).await;
    stream.shutdown().await.unwrap();
    drop(target);
    assert_eq!(v1.ended().text("peer"), from.to_string());
}

/// Peers of Unix sockets have no address.
#[test]
fn unix_peers_are_unknown() {
    let (listener, target_addr) = listen();
    let directory = tempfile::tempdir().unwrap();
    for version in ["v1", "v2"] {
        let path = directory.path().join(version);
        let listen = ["--listen", path.to_str().unwrap(), "--send-proxy-protocol", version];
        let server = Sidecar::server(&target_addr, KEY, &listen);
        let client = Sidecar::client(&server.addr, KEY, &["--listen", &format!("{}.client", path.display())]);
        let _plain = UnixStream::connect(&client.addr).unwrap();
        let mut target = accept(&listener);
        if version == "v1" {
            assert_eq!(read_v1(&mut target), "PROXY UNKNOWN");
        } else {
            assert_eq!(read_v2(&mut target), (None, vec![key_id()]));
        }
    }
}

/// The address in the header of the load balancer is the one that is logged and passed on.
#[tokio::test]
async fn address_from_the_load_balancer() {
    let (listener, target_addr) = listen();
    let args = |version| {
        [
            "--proxy-protocol-from",
            "127.0.0.50/32",
            "--proxy-protocol-from",
            "192.0.2.9",
            "--send-proxy-protocol",
            version,
        ]
    };
    let mut v1 = Sidecar::server(&target_addr, KEY, &args("v1"));
    let header = "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443";
    let (mut stream, _) = connect_noise(BALANCER, &v1.addr, format!("{header}\r\n").as_bytes()).await;
    let mut target = accept(&listener);
    assert_eq!(read_v1(&mut target), header);
    assert_data_follows(&mut stream, &mut target).await;
    stream.shutdown().await.unwrap();
    drop(target);
    assert_eq!(v1.ended().text("peer"), "192.0.2.1:4711");

    // Version 2 in, of IPv6, and out.
    let mut v2 = Sidecar::server(&target_addr, KEY, &args("v2"));
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    let [source, destination]: [SocketAddr; 2] =
        ["[2001:db8::1]:4711", "[2001:db8::2]:443"].map(|addr| addr.parse().unwrap());
    for addr in [source, destination] {
        let std::net::IpAddr::V6(ip) = addr.ip() else { unreachable!() };
        header.extend(ip.octets());
    }
    header.extend([source, destination].iter().flat_map(|addr| addr.port().to_be_bytes()));
    let (mut stream, _) = connect_noise(BALANCER, &v2.addr, &header).await;
    let mut target = accept(&listener);
    assert_eq!(read_v2(&mut target), (Some([source, destination]), vec![key_id()]));
    assert_data_follows(&mut stream, &mut target).await;
    stream.shutdown().await.unwrap();
    drop(target);
    assert_eq!(v2.ended().text("peer"), source.to_string());

    // The load balancer's own connections.
    let (mut stream, from) = connect_noise(BALANCER, &v1.addr, b"PROXY UNKNOWN\r\n").await;
    let mut target = accept(&listener);
    let port = v1.addr.rsplit(':').next().unwrap();
    assert_eq!(read_v1(&mut target), format!("PROXY TCP4 {BALANCER} 127.0.0.1 {} {port}", from.port()));
    assert_data_follows(&mut stream, &mut target).await;
}

/// Only trusted addresses can claim another address, and they must.
#[tokio::test]
async fn header_is_required_from_trusted_addresses_only() {
    let (listener, target_addr) = listen();
    let args = ["--proxy-protocol-from", "127.0.0.50", "--send-proxy-protocol", "v1", "--timeout", "0.5"];
    let mut server = Sidecar::server(&target_addr, KEY, &args);
    // Without a header, from elsewhere.
    let (_stream, from) = connect_noise("127.0.0.7", &server.addr, b"").await;
    let port = server.addr.rsplit(':').next().unwrap();
    let expected = format!("PROXY TCP4 127.0.0.7 127.0.0.1 {} {port}", from.port());
    assert_eq!(read_v1(&mut accept(&listener)), expected);

    // A header from elsewhere is a message that is wrong.
    let mut peer = connect(&server.addr);
    peer.get_mut().write_all(b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n").unwrap();
    assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)));
    let error = server.failure();
    assert!(error.contains("the PROXY protocol (version 1)"), "{error}");

    // No header from the load balancer.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(BALANCER.parse().unwrap(), 0)).unwrap();
    let mut tcp = socket.connect(server.addr.parse().unwrap()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    server.failure();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "neither reached the target");
}

/// A target that cannot be reached is no longer an error of the header.
#[test]
fn unreachable_target_of_a_header() {
    let server = Sidecar::server("127.0.0.1:1", KEY, &["--send-proxy-protocol", "v2"]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
}

/// HAProxy in front of one server.
struct HaProxy {
    addr: String,
    _running: Running,
    _directory: TempDir,
}

impl HaProxy {
    /// Starts HAProxy. `options` are those of its line for the server.
    fn start(server: &str, options: &str) -> Self {
        // On an IP address that no other test uses.
        let free = || TcpListener::bind("127.0.0.51:0").unwrap();
        let [addr, ready] = [free(), free()].map(|listener| listener.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("haproxy.cfg");
        let text = format!(
            "global
    maxconn 100
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
listen balancer
    bind {addr}
    server server {server} source {BALANCER} {options}
listen ready
    bind {ready}
"
        );
        std::fs::write(&config, text).unwrap();
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"];
        let program = program.into_iter().find(|path| std::fs::exists(path).unwrap()).unwrap_or("haproxy");
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&config).stderr(Stdio::inherit());
        let running = Running::start(&mut command);
        // It does not announce that it listens. The last listener is the last that it binds.
        while TcpStream::connect(ready).is_err() {
            sleep(Duration::from_millis(5));
        }
        Self { addr: addr.to_string(), _running: running, _directory: directory }
    }
}

#[tokio::test]
#[ignore = "needs HAProxy"]
async fn client_address_arrives_through_haproxy() {
    let (listener, target_addr) = listen();
    for options in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"] {
        let args = ["--proxy-protocol-from", BALANCER, "--send-proxy-protocol", "v2"];
        let mut server = Sidecar::server(&target_addr, KEY, &args);
        let haproxy = HaProxy::start(&server.addr, options);
        for source in ["127.0.0.2", "127.0.0.3"] {
            let (mut stream, from) = connect_noise(source, &haproxy.addr, b"").await;
            let mut target = accept(&listener);
            let (addresses, tlvs) = read_v2(&mut target);
            assert_eq!(
                addresses.unwrap().map(|addr| addr.to_string()),
                [from.to_string(), haproxy.addr.clone()]
            );
            assert_eq!(tlvs, [key_id()], "{options}");
            assert_data_follows(&mut stream, &mut target).await;
            stream.shutdown().await.unwrap();
            drop(target);
            assert_eq!(server.ended().text("peer"), from.to_string());
        }
        // The sidecar of a client.
        let client = Sidecar::client(&haproxy.addr, KEY, &[]);
        let mut plain = connect(&client.addr);
        let mut target = accept(&listener);
        let [source, _] = read_v2(&mut target).0.unwrap();
        assert_eq!(source.ip().to_string(), "127.0.0.1", "not {BALANCER}");
        target.write_all(b"hello").unwrap();
        plain.read_exact(&mut [0; 5]).unwrap();
    }
}

/// HAProxy checks a server by a connection that it resets at once.
#[test]
#[ignore = "needs HAProxy"]
fn health_checks_of_haproxy_fill_no_log() {
    let service = Service::start();
    let args = ["--proxy-protocol-from", BALANCER, "--penalties", "--admin", "127.0.0.1:0"];
    let mut server = Sidecar::server(&service.addr, KEY, &args);
    let haproxy = HaProxy::start(&server.addr, "send-proxy-v2 check inter 10ms");
    while metric(server.admin(), "challenge_handshakes_total", &["probe"]) < 20 {
        sleep(Duration::from_millis(10));
    }
    let client = Sidecar::client(&haproxy.addr, KEY, &[]);
    echo(&mut open(&client.addr), b"hello");
    drop((client, haproxy));
    server.running.terminate();
    let events = server.rest();
    assert!(!events.iter().any(|event| event.message().contains("handshake")), "{events:?}");
}
