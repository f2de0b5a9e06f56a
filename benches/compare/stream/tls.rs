//! TLS 1.3 with AES-256-GCM through `tokio-rustls`. Its cipher is that of ring or that of aws-lc-rs; everything else is
//! ring's.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rcgen::generate_simple_self_signed;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Nonce as TlsNonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use tokio_rustls::rustls::crypto::ring::{self, cipher_suite::TLS13_AES_256_GCM_SHA384};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CipherSuite, ClientConfig, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, RootCertStore,
    ServerConfig, SupportedCipherSuite, Tls13CipherSuite,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::way::{Result, Tokio, Way};

#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    pub(crate) fn with_ring() -> Self {
        Self::new(TLS13_AES_256_GCM_SHA384)
    }

    /// The provider of rustls for aws-lc-rs cannot be enabled: the feature would be on for every program of the
    /// workspace, and rustls has no default provider if there are two.
    pub(crate) fn with_aws_lc() -> Self {
        let SupportedCipherSuite::Tls13(suite) = TLS13_AES_256_GCM_SHA384 else { unreachable!("of TLS 1.3") };
        let suite = Tls13CipherSuite {
            common: tokio_rustls::rustls::crypto::CipherSuiteCommon { ..suite.common },
            hkdf_provider: suite.hkdf_provider,
            aead_alg: &AwsLcAes,
            quic: None,
        };
        Self::new(SupportedCipherSuite::Tls13(Box::leak(Box::new(suite))))
    }

    fn new(suite: SupportedCipherSuite) -> Self {
        let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..ring::default_provider() });
        let certified = generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = certified.cert.der().clone();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("a cipher suite of TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate and its key");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("a cipher suite of TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
    }
}

impl Way for Tls {
    type Accepted = Tokio<server::TlsStream<TcpStream>>;
    type Connected = Tokio<client::TlsStream<TcpStream>>;

    async fn accept(self, io: TcpStream) -> Result<Self::Accepted> {
        Ok(Tokio(self.acceptor.accept(io).await?))
    }

    async fn connect(self, io: TcpStream) -> Result<Self::Connected> {
        let io = self.connector.connect(ServerName::try_from("localhost")?, io).await?;
        let suite = io.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite());
        if suite != Some(CipherSuite::TLS13_AES_256_GCM_SHA384) {
            return Err("another cipher suite was negotiated".into());
        }
        Ok(Tokio(io))
    }
}

/// AES-256-GCM of aws-lc-rs, as rustls itself uses it.
struct AwsLcAes;

struct Records {
    key: LessSafeKey,
    iv: Iv,
}

impl Records {
    fn new(key: &AeadKey, iv: Iv) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("a key of 32 bytes");
        Self { key: LessSafeKey::new(key), iv }
    }

    fn nonce(&self, seq: u64) -> Nonce {
        Nonce::assume_unique_for_key(TlsNonce::new(&self.iv, seq).0)
    }
}

impl Tls13AeadAlgorithm for AwsLcAes {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Records::new(&key, iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Records::new(&key, iv))
    }

    fn key_len(&self) -> usize {
        AES_256_GCM.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> std::result::Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Aes256Gcm { key, iv })
    }
}

impl MessageEncrypter for Records {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        seq: u64,
    ) -> std::result::Result<OutboundOpaqueMessage, Error> {
        let len = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(len);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&[message.typ.into()]);
        self.key
            .seal_in_place_append_tag(self.nonce(seq), Aad::from(make_tls13_aad(len)), &mut payload)
            .map_err(|_| Error::EncryptError)?;
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + AES_256_GCM.tag_len()
    }
}

impl MessageDecrypter for Records {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        seq: u64,
    ) -> std::result::Result<InboundPlainMessage<'a>, Error> {
        let nonce = self.nonce(seq);
        let aad = Aad::from(make_tls13_aad(message.payload.len()));
        let opened =
            self.key.open_in_place(nonce, aad, &mut message.payload).map_err(|_| Error::DecryptError)?;
        let len = opened.len();
        message.payload.truncate(len);
        message.into_tls13_unpadded_message()
    }
}
