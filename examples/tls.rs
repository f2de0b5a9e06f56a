//! The mutual handshake inside TLS and bound to it, all in one process: a server, a client that trusts any
//! certificate, and a relay between the two, which is refused all the same.
//!
//! ```text
//! cargo run --features rustls --example tls
//! ```

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
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_challenge::mutual::{self, Audience, PreparedKey, ProvenServer};
use tower_challenge::{
    Acceptor, AnswerLayer, Authenticated, ConnectError, Connection, HandshakeErrorKind, Key, KeyEntry,
    KeyRing, serve,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// How long the handshake of TLS may take. That of the key comes after it, and has a deadline of its own.
const TLS_TIMEOUT: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let server = mutual::Server::new(keys, Audience::new("greetings")?);
    let client = mutual::Client::new("alice", &key, Audience::new("greetings")?)?;

    let bound = client.clone().require_channel_binding();
    let (addr, mut error) = start_server(server.clone().require_channel_binding()).await?;
    println!("A server listens on {addr}, with TLS 1.3 and a handshake bound to it.");

    println!("\nA client, which trusts any certificate but has the right key:");
    let greeting = talk(connect(addr, bound.clone()).await?).await?;
    println!("  client: the server says {greeting:?}");

    println!("\nA stranger who never begins with TLS:");
    let len = TcpStream::connect(addr).await?.read_to_end(&mut Vec::new()).await?;
    println!("  stranger: got {len} bytes, then the server closed");
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nThe same client, led to a relay in the middle:");
    match connect(start_relay(addr).await?, bound).await {
        Err(ConnectError::Handshake(error)) if error.kind() == HandshakeErrorKind::Refused => {
            println!("  client: {error}");
        }
        other => return Err(format!("expected to be refused, got {other:?}").into()),
    }
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nThe same relay, where client and server ignore the channel binding:");
    let (addr, _error) = start_server(server.ignore_channel_binding()).await?;
    let relayed = connect(start_relay(addr).await?, client.ignore_channel_binding()).await?;
    let greeting = talk(relayed).await?;
    println!("  client: the server says {greeting:?}");
    println!("  WARNING: the relay was let through, and could read and change all of this.");
    Ok(())
}

/// Starts a server; returns where it listens, and what goes wrong on its connections.
async fn start_server(
    mechanism: mutual::Server<KeyRing<PreparedKey>>,
) -> Result<(SocketAddr, mpsc::UnboundedReceiver<String>), BoxError> {
    let tls = tls_acceptor()?;
    let acceptor = Acceptor::new(mechanism);
    let service = service_fn(move |connection: Connection<TcpStream>| {
        let (tls, acceptor) = (tls.clone(), acceptor.clone());
        async move {
            // A stranger can stall in TLS as well: it counts as pending from here on.
            let slot = acceptor.admit(Some(connection.addr().ip()))?;
            let shutdown = connection.shutdown_token().clone();
            // Nobody else limits it: the clock of the challenge starts when TLS is there.
            let handshake = slot.guard(TLS_TIMEOUT, tls.accept(connection));
            let handshake = shutdown.run_until_cancelled(handshake).await.ok_or("shut down during TLS")?;
            let (stream, slot) = handshake.map_err(|error| format!("TLS: {error}"))?;
            let stream = acceptor.accept_admitted(stream, slot).await?;
            Ok::<_, BoxError>(greet(stream).await?)
        }
    });

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let (errors, error) = mpsc::unbounded_channel();
    let server =
        serve(listener, service).on_error(move |error| errors.send(error.to_string()).unwrap_or_default());
    tokio::spawn(server.into_future());
    Ok((addr, error))
}

/// The session.
async fn greet(
    mut stream: Authenticated<server::TlsStream<Connection<TcpStream>>, mutual::Peer>,
) -> io::Result<()> {
    let mut question = String::new();
    stream.read_to_string(&mut question).await?;
    println!("  server: {} asks {question:?}", stream.peer().identity().key_id());
    stream.write_all(b"fine, thank you").await?;
    // Says goodbye in TLS: an end without it may be the work of somebody who cut the rest off.
    stream.shutdown().await
}

type ClientStream = Authenticated<client::TlsStream<TcpStream>, ProvenServer>;

/// Connects with TCP, then TLS, then the handshake inside.
async fn connect(
    addr: SocketAddr,
    mechanism: mutual::Client,
) -> Result<ClientStream, ConnectError<io::Error>> {
    ServiceBuilder::new().layer(AnswerLayer::new(mechanism)).service_fn(connect_tls).oneshot(addr).await
}

async fn talk(mut stream: ClientStream) -> io::Result<String> {
    stream.write_all(b"how are you?").await?;
    stream.shutdown().await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

/// A man in the middle, with a certificate of his own: he ends the TLS of one client, opens his own to the
/// server, and hands on all that the two say.
async fn start_relay(server: SocketAddr) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let tls = tls_acceptor()?;
    tokio::spawn(async move {
        let mut client = tls.accept(listener.accept().await?.0).await?;
        let mut server = connect_tls(server).await?;
        println!("  relay: TLS with the client, TLS with the server, and I sit in between");
        copy_bidirectional(&mut client, &mut server).await
    });
    Ok(addr)
}

/// TLS 1.3, with a certificate that is new each time and signed by nobody else.
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
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(addr).await?).await
}

/// Trusts any certificate, which no client should: here it shows that the binding protects even then.
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

    // Whoever shows a certificate must hold its key: the relay has one of its own, and does.
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
