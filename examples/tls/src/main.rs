//! The mutual handshake inside TLS, bound to the channel. One process runs the server, a client that accepts any
//! certificate, and a man in the middle, which the server refuses nevertheless.
//!
//! ```text
//! cargo run -p example-tls
//! ```

#[macro_use]
#[path = "../../shared/print.rs"]
mod print;
#[path = "../../shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::mutual::{self, Audience, ServerPeer};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, ConnectError, Connection, HandshakeErrorKind, Key, KeyEntry,
    serve,
};

use self::shutdown_signal::shutdown_signal;

type BoxError = Box<dyn Error + Send + Sync>;

/// The deadline of both handshakes together.
const TIMEOUT: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let server = mutual::Server::new(keys, Audience::new("greetings")?);
    let client = mutual::Client::new("alice", &key, Audience::new("greetings")?)?;

    let bound = client.clone().require_channel_binding();
    let (addr, mut error) = start_server(server.clone().require_channel_binding()).await?;
    println!("The server listens on {addr}, with TLS 1.3 and a handshake bound to it.");

    println!("\nA client that accepts any certificate and has the right key:");
    let greeting = talk(connect(addr, bound.clone()).await?).await?;
    println!("  client: the server says {greeting:?}");

    println!("\nA client that does not start TLS:");
    let len = TcpStream::connect(addr).await?.read_to_end(&mut Vec::new()).await?;
    println!("  client: got {len} bytes, then the server closed");
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nThe first client, connected to a man in the middle:");
    match connect(start_man_in_the_middle(addr).await?, bound).await {
        Err(ConnectError::Handshake(error)) if error.kind() == HandshakeErrorKind::Refused => {
            println!("  client: {error}");
        }
        other => return Err(format!("expected to be refused, got {other:?}").into()),
    }
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nThe same man in the middle, if client and server ignore the channel binding:");
    let (addr, _error) = start_server(server.dangerous_ignore_channel_binding()).await?;
    let client = client.dangerous_ignore_channel_binding();
    let relayed = connect(start_man_in_the_middle(addr).await?, client).await?;
    let greeting = talk(relayed).await?;
    println!("  client: the server says {greeting:?}");
    println!("  WARNING: the man in the middle was not detected. It could read and change everything.");
    Ok(())
}

/// Starts a server. Returns its address and the errors of its connections.
async fn start_server(
    mechanism: mutual::Server<mutual::KeyRing>,
) -> Result<(SocketAddr, mpsc::UnboundedReceiver<String>), BoxError> {
    let tls = tls_acceptor()?;
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(TIMEOUT)
        .prepare(move |connection: Connection<TcpStream>| tls.accept(connection));
    let service = ServiceBuilder::new().layer(challenge).service_fn(greet);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let (errors, error) = mpsc::unbounded_channel();
    let server = serve(listener, service)
        .graceful_shutdown(shutdown_signal())
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default());
    tokio::spawn(server.into_future());
    Ok((addr, error))
}

/// Runs a session.
async fn greet(
    mut stream: Authenticated<server::TlsStream<Connection<TcpStream>>, mutual::Peer>,
) -> io::Result<()> {
    let mut question = String::new();
    stream.read_to_string(&mut question).await?;
    println!("  server: {} asks {question:?}", stream.peer().identity().key_id());
    stream.write_all(b"fine, thank you").await?;
    // Sends TLS's `close_notify`. Without it the client cannot tell the end from a truncation by an attacker.
    stream.shutdown().await
}

type ClientStream = Authenticated<client::TlsStream<TcpStream>, ServerPeer>;

/// Connects with TCP, then TLS, then the mutual handshake.
async fn connect(addr: SocketAddr, mechanism: mutual::Client) -> Result<ClientStream, ConnectError> {
    ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(connect_tls).oneshot(addr).await
}

async fn talk(mut stream: ClientStream) -> io::Result<String> {
    stream.write_all(b"how are you?").await?;
    stream.shutdown().await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply)
}

/// Starts a man in the middle with a certificate of its own. It terminates the TLS of one client, opens a TLS connection
/// to the server, and relays everything between the two.
async fn start_man_in_the_middle(server: SocketAddr) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let tls = tls_acceptor()?;
    tokio::spawn(async move {
        let mut client = tls.accept(listener.accept().await?.0).await?;
        let mut server = connect_tls(server).await?;
        println!("  man in the middle: TLS with the client, TLS with the server");
        copy_bidirectional(&mut client, &mut server).await
    });
    Ok(addr)
}

/// Creates an acceptor for TLS 1.3 with a new self-signed certificate.
fn tls_acceptor() -> Result<TlsAcceptor, BoxError> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der())?;
    let config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn connect_tls(addr: SocketAddr) -> io::Result<client::TlsStream<TcpStream>> {
    let algorithms = crypto::ring::default_provider().signature_verification_algorithms;
    let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a valid name");
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(addr).await?).await
}

/// A verifier that accepts any certificate, which no real client should do. It shows that the channel binding protects
/// even then.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    // A server must hold the private key of its certificate. The man in the middle has a certificate of its own, so it
    // passes.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
