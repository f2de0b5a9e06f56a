//! TLS 1.3 with client certificates: `tokio-rustls` with ring, ECDSA on P-256, and one certificate authority for both
//! sides.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::way::{Key, Result, Way, be_greeted, greet, in_time};

#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// The expected kinds of the next handshake and of all later ones, which are checked.
    next: Rc<Cell<HandshakeKind>>,
    later: HandshakeKind,
}

impl Tls {
    /// Each connection sends and verifies certificates.
    pub(crate) fn full(_: &Key) -> Self {
        let (mut server, mut client) = configs();
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Self::new(server, client, HandshakeKind::Full)
    }

    /// The defaults of rustls: certificates on the first connection, tickets on later ones.
    pub(crate) fn resumed(_: &Key) -> Self {
        let (server, client) = configs();
        Self::new(server, client, HandshakeKind::Resumed)
    }

    fn new(server: ServerConfig, client: ClientConfig, later: HandshakeKind) -> Self {
        let next = Rc::new(Cell::new(HandshakeKind::Full));
        Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into(), next, later }
    }
}

fn configs() -> (ServerConfig, ClientConfig) {
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).expect("a certificate");
    let roots = Arc::new(roots);
    let issue = |name: &str| -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        (vec![certificate.into()], key.into())
    };

    let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots)).build().expect("an authority");
    let (certificates, key) = issue("localhost");
    let server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .expect("a certificate and its key");
    let (certificates, key) = issue("client");
    let client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .expect("a certificate and its key");
    (server, client)
}

impl Way for Tls {
    async fn accept(self, io: TcpStream) -> Result<()> {
        greet(in_time(async { Ok(self.acceptor.accept(io).await?) }).await?).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        let name = ServerName::try_from("localhost")?;
        let io = in_time(async { Ok(self.connector.connect(name, io).await?) }).await?;
        if io.get_ref().1.handshake_kind() != Some(self.next.replace(self.later)) {
            return Err("the handshake is of the wrong kind".into());
        }
        be_greeted(io).await
    }
}
