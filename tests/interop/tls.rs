//! The mutual handshake inside TLS, over real sockets: with a channel binding, without one, and through a relay whose
//! two channels differ.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream, client, server};
use tokio_util::sync::CancellationToken;
use tower_challenge::HandshakeErrorKind::{ChannelBinding as NoChannelBinding, Refused, ShuttingDown};
use tower_challenge::mutual::{Audience, Client, KeyRing, Peer, Server, ServerPeer};
use tower_challenge::transport::{ChannelBinding, SocketOptions, TransportInfo};
use tower_challenge::{
    Acceptor, Authenticated, Connection, Connector, HandshakeError, Key, KeyEntry, RefusalReason, Transport,
};

fn key() -> Key {
    Key::new("a key of sixteen bytes and more").unwrap()
}

fn audience() -> Audience {
    Audience::new("orders").unwrap()
}

fn server() -> Server<KeyRing> {
    Server::new(KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap(), audience())
}

fn client() -> Client {
    Client::new("alice", &key(), audience()).unwrap()
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// Runs TLS over these two streams, with a new certificate that the client trusts.
async fn tls_over<C, S>(
    version: &'static SupportedProtocolVersion,
    (client, server): (C, S),
) -> (client::TlsStream<C>, server::TlsStream<S>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = own.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let client_config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server_config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let (client, server) = tokio::join!(
        TlsConnector::from(Arc::new(client_config)).connect(name, client),
        TlsAcceptor::from(Arc::new(server_config)).accept(server)
    );
    (client.unwrap(), server.unwrap())
}

async fn tls_pair(
    version: &'static SupportedProtocolVersion,
) -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
    tls_over(version, tcp_pair().await).await
}

type Outcome<IO, P> = Result<Authenticated<IO, P>, HandshakeError>;

async fn shake<C, S>(
    client: Client,
    server: Server<KeyRing>,
    (client_io, server_io): (C, S),
) -> (Outcome<C, ServerPeer>, Outcome<S, Peer>)
where
    C: AsyncRead + AsyncWrite + Transport + Unpin,
    S: AsyncRead + AsyncWrite + Transport + Unpin,
{
    let (acceptor, connector) = (Acceptor::new(server), Connector::new(client));
    tokio::join!(connector.connect(client_io), acceptor.accept(server_io))
}

/// Sends data in both directions.
async fn talk<C, S>(
    (connected, accepted): &mut (Authenticated<C, ServerPeer>, Authenticated<S, Peer>),
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    assert_eq!(accepted.peer().identity().key_id(), &"alice");
    let mut received = [0; 5];
    connected.write_all(b"hello").await?;
    connected.flush().await?;
    accepted.read_exact(&mut received).await?;
    assert_eq!(&received, b"hello");
    accepted.write_all(b"world").await?;
    accepted.flush().await?;
    connected.read_exact(&mut received).await?;
    assert_eq!(&received, b"world");
    Ok(())
}

fn binding(io: &impl Transport) -> Option<ChannelBinding> {
    TransportInfo::from_stream(io).channel_binding
}

#[tokio::test]
async fn tls_1_3_handshake_is_bound_to_its_channel() {
    let mut channels = Vec::new();
    for _ in 0..2 {
        let pair = tls_pair(&TLS13).await;
        let channel = binding(&pair.0).unwrap();
        let (connected, accepted) =
            shake(client().require_channel_binding(), server().require_channel_binding(), pair).await;
        let mut streams = (connected.unwrap(), accepted.unwrap());
        talk(&mut streams).await.unwrap();
        // The same on both sides, before and after the handshake, and through the wrapper.
        assert_eq!(binding(&streams.0).as_ref(), Some(&channel));
        assert_eq!(binding(&streams.1).as_ref(), Some(&channel));
        assert_eq!(channel.kind(), "tls-exporter");
        assert_eq!(channel.data().len(), 32);
        channels.push(channel);
    }
    assert_ne!(channels[0], channels[1], "each connection is a channel of its own");
}

/// Asserts that the stream ended without data. TLS reports an unexpected end, since no `close_notify` was sent.
async fn assert_closed_without_a_byte(mut io: impl AsyncRead + Unpin) {
    let mut received = Vec::new();
    let ended = io.read_to_end(&mut received).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(received, b"");
}

#[tokio::test]
async fn required_channel_binding_fails_on_tls_1_2() {
    let (client_io, server_io) = tls_pair(&TLS12).await;
    assert_eq!((binding(&client_io), binding(&server_io)), (None, None));
    let acceptor = Acceptor::new(server().require_channel_binding());
    assert_eq!(acceptor.accept(server_io).await.unwrap_err().kind(), NoChannelBinding);
    assert_closed_without_a_byte(client_io).await;

    let (client_io, server_io) = tls_pair(&TLS12).await;
    let connector = Connector::new(client().require_channel_binding());
    assert_eq!(connector.connect(client_io).await.unwrap_err().kind(), NoChannelBinding);
    assert_closed_without_a_byte(server_io).await;

    // If it is optional, the handshake succeeds without one.
    let (connected, accepted) = shake(client(), server(), tls_pair(&TLS12).await).await;
    talk(&mut (connected.unwrap(), accepted.unwrap())).await.unwrap();
}

/// Connects a client and a server through a relay whose certificate the client trusts: the relay terminates TLS on both
/// sides and forwards all data.
async fn relayed() -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
    let (client, mut near) = tls_pair(&TLS13).await;
    let (mut far, server) = tls_pair(&TLS13).await;
    tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
    (client, server)
}

#[tokio::test]
async fn relay_is_refused_unless_both_sides_ignore_the_binding() {
    let (client_io, server_io) = relayed().await;
    assert_ne!(binding(&client_io), binding(&server_io));

    let (connected, accepted) = shake(
        client().dangerous_ignore_channel_binding(),
        server().dangerous_ignore_channel_binding(),
        (client_io, server_io),
    )
    .await;
    talk(&mut (connected.unwrap(), accepted.unwrap())).await.unwrap();

    for (client, server) in [
        (client(), server()),
        (client().require_channel_binding(), server().require_channel_binding()),
        (client().dangerous_ignore_channel_binding(), server().require_channel_binding()),
        (client().require_channel_binding(), server().dangerous_ignore_channel_binding()),
    ] {
        let case = format!("{client:?} {server:?}");
        let (connected, accepted) = shake(client, server, relayed().await).await;
        assert_eq!(connected.unwrap_err().kind(), Refused, "{case}");
        let error = accepted.unwrap_err();
        assert_eq!(error.kind(), Refused, "{case}");
        assert_eq!(error.refusal_reason(), Some(RefusalReason::ProofMismatch), "{case}");
        assert!(error.to_string().contains("channel binding"), "{error}");
    }
}

/// Asserts that a handshake with a silent client ends when the token is cancelled.
async fn assert_ended_by(token: &CancellationToken, io: impl AsyncRead + AsyncWrite + Transport + Unpin) {
    let info = TransportInfo::from_stream(&io);
    assert!(info.shutdown.is_some() && info.channel_binding.is_some());
    let acceptor = Acceptor::new(server().require_channel_binding());
    let mut handshake = tokio_test::task::spawn(acceptor.accept(io));
    assert!(handshake.poll().is_pending());
    token.cancel();
    assert_eq!(handshake.await.map(drop).unwrap_err().kind(), ShuttingDown);
}

#[tokio::test]
async fn shutdown_ends_handshake_inside_tls() {
    // A `Connection` around the TLS stream, as an outer service of `serve` may build it.
    let token = CancellationToken::new();
    let (client, io) = tcp_pair().await;
    let addr = io.peer_addr().unwrap();
    let (_client, io) = tls_over(&TLS13, (client, io)).await;
    assert_ended_by(&token, Connection::new(io, addr, &token)).await;

    // A TLS stream around the `Connection`, which forwards the token.
    let token = CancellationToken::new();
    let (client, io) = tcp_pair().await;
    let io = Connection::new(io, addr, &token);
    let (_client, io) = tls_over(&TLS13, (client, io)).await;
    assert_ended_by(&token, io).await;
}

#[tokio::test]
async fn tls_stream_enum_forwards_to_its_variant() {
    let (client_io, server_io) = tls_pair(&TLS13).await;
    let channel = binding(&client_io);
    let pair: (TlsStream<TcpStream>, TlsStream<TcpStream>) = (client_io.into(), server_io.into());
    assert!(channel.is_some());
    for io in [&pair.0, &pair.1] {
        assert_eq!(binding(io), channel);
        assert!(!io.get_ref().0.nodelay().unwrap());
        io.set_socket_options(&SocketOptions::new()).unwrap();
        assert!(io.get_ref().0.nodelay().unwrap());
    }
    let (connected, accepted) =
        shake(client().require_channel_binding(), server().require_channel_binding(), pair).await;
    talk(&mut (connected.unwrap(), accepted.unwrap())).await.unwrap();
}
