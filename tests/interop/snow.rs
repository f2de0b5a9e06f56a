//! `noise` with a peer on the crate `snow`, another implementation of the Noise protocol framework, over TCP.

use std::io;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::noise::{self, Audience, NoiseStream, Suite};
use tower_challenge::{
    Acceptor, Authenticated, Connector, HandshakeError, HandshakeErrorKind, Key, KeyEntry, RefusalReason,
};

use crate::process::{example, run, stderr, stdout};

const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];
const ID: &[u8] = b"alice";
const AUDIENCE: &[u8] = b"orders";

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

const FINISH: u8 = 0;
const DATA: u8 = 1;
const CLOSE: u8 = 2;

/// Before every record whose number is a multiple of this, a direction is rekeyed.
const REKEY_EVERY: u64 = 1 << 20;

/// The peer after the handshake.
struct Peer {
    io: BufStream<TcpStream>,
    noise: TransportState,
}

impl Peer {
    fn seal(&mut self, kind: u8, data: &[u8]) -> Vec<u8> {
        let nonce = self.noise.sending_nonce();
        if nonce > 0 && nonce % REKEY_EVERY == 0 {
            self.noise.rekey_outgoing();
        }
        let mut sealed = vec![0; 1 + data.len() + 16];
        let len = self.noise.write_message(&[&[kind], data].concat(), &mut sealed).unwrap();
        assert_eq!(len, sealed.len());
        sealed
    }

    async fn send(&mut self, kind: u8, data: &[u8]) {
        let sealed = self.seal(kind, data);
        write_frame(&mut self.io, &sealed).await;
    }

    async fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let sealed = read_frame(&mut self.io).await?;
        let nonce = self.noise.receiving_nonce();
        if nonce > 0 && nonce % REKEY_EVERY == 0 {
            self.noise.rekey_incoming();
        }
        let mut data = vec![0; sealed.len()];
        let len = self.noise.read_message(&sealed, &mut data).unwrap();
        data.truncate(len);
        let kind = data.remove(0);
        Ok((kind, data))
    }

    /// Reads up to a CLOSE.
    async fn receive_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.receive().await.unwrap() {
                (DATA, data) => all.extend_from_slice(&data),
                (CLOSE, data) => {
                    assert!(data.is_empty());
                    return all;
                }
                (kind, _) => panic!("a record of type {kind}"),
            }
        }
    }

    async fn close(&mut self) {
        self.send(CLOSE, b"").await;
        self.io.shutdown().await.unwrap();
    }
}

async fn write_frame(io: &mut BufStream<TcpStream>, frame: &[u8]) {
    io.write_u16(frame.len().try_into().unwrap()).await.unwrap();
    io.write_all(frame).await.unwrap();
}

async fn read_frame(io: &mut BufStream<TcpStream>) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; io.read_u16().await?.into()];
    io.read_exact(&mut frame).await?;
    Ok(frame)
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().into()
}

/// Returns snow's state before the first message, as the documentation of `noise` describes it.
fn handshake(is_client: bool, suite: u8, key: &[u8]) -> HandshakeState {
    const PROTOCOL: &[u8] = b"tower-challenge noise v1";

    // HKDF, with one block of output.
    let psk = hmac(&hmac(PROTOCOL, key), b"psk\x01");
    let mut prologue = Vec::new();
    let mut field = |bytes: &[u8]| {
        prologue.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
        prologue.extend_from_slice(bytes);
    };
    field(PROTOCOL);
    let after_protocol = 2 + PROTOCOL.len();
    for bytes in [ID, AUDIENCE, b"", b""] {
        field(bytes);
    }
    prologue.insert(after_protocol, suite);

    let pattern = match suite {
        1 => "Noise_NNpsk0_25519_AESGCM_SHA256",
        2 => "Noise_NNpsk0_25519_ChaChaPoly_SHA256",
        _ => panic!("an unknown suite"),
    };
    let builder = Builder::new(pattern.parse().unwrap()).prologue(&prologue).unwrap().psk(0, &psk).unwrap();
    if is_client { builder.build_initiator() } else { builder.build_responder() }.unwrap()
}

/// Plays the client up to ANSWER. `None` if it was refused.
async fn connect(io: TcpStream, suite: u8, key: &[u8]) -> Option<Peer> {
    let mut io = BufStream::new(io);
    let mut state = handshake(true, suite, key);
    let mut message = [0; 48];
    assert_eq!(state.write_message(&[], &mut message).unwrap(), message.len());
    let hello = [&[1, suite, ID.len().try_into().unwrap()], ID, &message].concat();
    write_frame(&mut io, &hello).await;
    io.flush().await.unwrap();
    let answer = read_frame(&mut io).await.unwrap();
    if answer == [0] {
        return None;
    }
    assert_eq!((answer[0], answer.len()), (1, 49));
    assert_eq!(state.read_message(&answer[1..], &mut []).unwrap(), 0);
    Some(Peer { io, noise: state.into_transport_mode().unwrap() })
}

/// Plays the server up to FINISH. `None` if the client did not send it, since it did not accept the answer.
async fn accept(io: TcpStream, key: &[u8]) -> Option<Peer> {
    let mut io = BufStream::new(io);
    let hello = read_frame(&mut io).await.unwrap();
    let suite = hello[1];
    assert_eq!(hello[..hello.len() - 48], [&[1, suite, ID.len().try_into().unwrap()], ID].concat());
    let mut state = handshake(false, suite, key);
    if state.read_message(&hello[hello.len() - 48..], &mut []).is_err() {
        write_frame(&mut io, &[0]).await;
        io.flush().await.unwrap();
        return None;
    }
    let mut answer = [1; 49];
    assert_eq!(state.write_message(&[], &mut answer[1..]).unwrap(), 48);
    write_frame(&mut io, &answer).await;
    io.flush().await.unwrap();
    let mut peer = Peer { io, noise: state.into_transport_mode().unwrap() };
    assert_eq!(peer.receive().await.unwrap(), (FINISH, Vec::new()));
    Some(peer)
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn audience() -> Audience {
    Audience::new(AUDIENCE).unwrap()
}

fn acceptor() -> Acceptor<noise::Server<noise::KeyRing>> {
    let entry = KeyEntry::new("alice", Key::new(KEY).unwrap()).unwrap();
    Acceptor::new(noise::Server::new(noise::KeyRing::new([entry]).unwrap(), audience()))
}

fn connector(suite: Suite) -> Connector<noise::Client> {
    let client = noise::Client::new("alice", &Key::new(KEY).unwrap(), audience()).unwrap();
    Connector::new(client.suite(suite))
}

type Server = Authenticated<NoiseStream<TcpStream>, noise::Peer>;
type Client = Authenticated<NoiseStream<TcpStream>, noise::ServerPeer>;

/// Returns a client on snow, connected to a server of this crate.
async fn snow_client(suite: u8) -> (Peer, Server) {
    let (near, far) = tcp().await;
    let connect = async {
        let mut client = connect(near, suite, &KEY).await.unwrap();
        client.send(FINISH, b"").await;
        client.io.flush().await.unwrap();
        client
    };
    let acceptor = acceptor();
    let (client, server) = tokio::join!(connect, acceptor.accept(far));
    (client, server.unwrap())
}

/// Returns a server on snow, to which a client of this crate is connected.
async fn snow_server(suite: Suite) -> (Peer, Client) {
    let (near, far) = tcp().await;
    let connector = connector(suite);
    let (server, client) = tokio::join!(accept(far, &KEY), connector.connect(near));
    (server.unwrap(), client.unwrap())
}

/// Bytes that differ from each other for long enough.
fn data() -> Vec<u8> {
    (0..1_000_003_usize).map(|at| (at * 7 + at / 256 * 13 + at / 65_536).to_le_bytes()[0]).collect()
}

/// Sends data to the peer in records of many lengths, and echoes it. Each side closes.
async fn exchange<P>(mut peer: Peer, mut stream: Authenticated<NoiseStream<TcpStream>, P>) {
    let sent = data();
    let theirs = async {
        let mut rest = &sent[..];
        for len in (0..).step_by(997).map(|len| len % 65_518) {
            let part;
            (part, rest) = rest.split_at(len.min(rest.len()));
            peer.send(DATA, part).await;
            if rest.is_empty() {
                break;
            }
        }
        peer.close().await;
        peer.receive_all().await
    };
    let ours = async {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        stream.write_all(&received).await.unwrap();
        stream.shutdown().await.unwrap();
        received
    };
    let (echoed, received) = tokio::join!(theirs, ours);
    assert!(received == sent);
    assert!(echoed == sent);
}

#[tokio::test]
async fn client_on_snow() {
    for suite in [1, 2] {
        let (client, server) = snow_client(suite).await;
        assert_eq!(server.peer().identity().key_id(), &"alice");
        exchange(client, server).await;
    }
}

#[tokio::test]
async fn server_on_snow() {
    for suite in SUITES {
        let (server, client) = snow_server(suite).await;
        exchange(server, client).await;
    }
}

#[tokio::test]
async fn wrong_key_is_refused() {
    let (near, far) = tcp().await;
    let acceptor = acceptor();
    let (client, refused) = tokio::join!(connect(near, 1, &OTHER_KEY), acceptor.accept(far));
    assert!(client.is_none());
    assert_eq!(refused.unwrap_err().refusal_reason(), Some(RefusalReason::ProofMismatch));

    let (near, far) = tcp().await;
    let connector = connector(Suite::Aes256Gcm);
    let (server, refused) = tokio::join!(accept(far, &OTHER_KEY), connector.connect(near));
    assert!(server.is_none());
    assert_eq!(refused.unwrap_err().kind(), HandshakeErrorKind::Refused);
}

/// The server accepts HELLO, which may be a replay, and no record but FINISH after it.
#[tokio::test]
async fn client_on_snow_without_finish_is_refused() {
    for kind in [DATA, CLOSE] {
        let (near, far) = tcp().await;
        let connect = async {
            let mut client = connect(near, 1, &KEY).await.unwrap();
            client.send(kind, b"").await;
            client.io.flush().await.unwrap();
            // It gets no record.
            client.receive().await.unwrap_err();
        };
        let acceptor = acceptor();
        let accept = async {
            let accepted: Result<Server, HandshakeError> = acceptor.accept(far).await;
            accepted.unwrap_err()
        };
        let ((), refused) = tokio::join!(connect, accept);
        assert_eq!(refused.refusal_reason(), Some(RefusalReason::NoFinish));
    }
}

/// Neither side of this crate takes a second FINISH or an unknown type for data or an end, and neither sends a CLOSE
/// after it.
#[tokio::test]
async fn unexpected_records_of_snow_are_errors() {
    async fn fails<P>(mut peer: Peer, mut stream: Authenticated<NoiseStream<TcpStream>, P>, kind: u8) {
        peer.send(DATA, b"part one").await;
        peer.send(kind, b"").await;
        peer.io.flush().await.unwrap();
        let mut received = Vec::new();
        let error = stream.read_to_end(&mut received).await.unwrap_err();
        assert_eq!((error.kind(), &received[..]), (io::ErrorKind::InvalidData, &b"part one"[..]));
        stream.shutdown().await.unwrap_err();
        assert_eq!(peer.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    for kind in [FINISH, 3, 255] {
        let (client, server) = snow_client(1).await;
        fails(client, server, kind).await;
        let (server, client) = snow_server(Suite::Aes256Gcm).await;
        fails(server, client, kind).await;
    }
}

#[tokio::test]
async fn end_without_a_close_is_an_error() {
    let (mut client, mut server) = snow_client(1).await;
    client.send(DATA, b"part one").await;
    // The transport's end alone.
    client.io.shutdown().await.unwrap();
    let mut received = Vec::new();
    let error = server.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((error.kind(), &received[..]), (io::ErrorKind::UnexpectedEof, &b"part one"[..]));

    // And the other way round.
    let (mut server, mut client) = snow_server(Suite::Aes256Gcm).await;
    client.write_all(b"part one").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    assert_eq!(server.receive().await.unwrap(), (DATA, b"part one".to_vec()));
    assert_eq!(server.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// Anyone on the path can reset a connection.
#[tokio::test]
async fn example_client_does_not_take_a_reset_for_the_end() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), format!("alice:{}\n", "07".repeat(32))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let mut client = example("client");
    client.args(["--mechanism", "noise", "--audience", "orders", "--connect", &addr, "--key-file"]);
    client.arg(keys.path());
    let client = tokio::task::spawn_blocking(move || run(&mut client, "a line\n".repeat(100_000)));
    let server = accept(listener.accept().await.unwrap().0, &KEY).await.unwrap();
    // Closing with unread data resets the connection.
    server.io.get_ref().readable().await.unwrap();
    drop(server);
    let output = client.await.unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    assert!(stderr(&output).starts_with(&format!("error: {addr}: ")), "{}", stderr(&output));
}

/// Both directions are rekeyed once.
#[tokio::test]
async fn rekeying_is_that_of_snow() {
    const RECORDS: u64 = REKEY_EVERY + 2;

    let (mut client, mut server) = snow_client(1).await;
    let theirs = async {
        while client.noise.sending_nonce() < RECORDS {
            client.send(DATA, b"u").await;
        }
        client.close().await;
        client.receive_all().await
    };
    let ours = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        for _ in 0..RECORDS {
            // One record each.
            assert_eq!(server.write(b"d").await.unwrap(), 1);
        }
        server.shutdown().await.unwrap();
        received
    };
    let (down, up) = tokio::join!(theirs, ours);
    // FINISH has no data.
    assert_eq!(up.len() as u64, RECORDS - 1);
    assert_eq!(down.len() as u64, RECORDS);
}
