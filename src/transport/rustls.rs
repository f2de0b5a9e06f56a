//! The channel binding of RFC 9266, `tls-exporter`, for the streams of tokio-rustls.

use std::io;

use tokio_rustls::rustls::{ConnectionCommon, ProtocolVersion, SideData};
use tokio_rustls::{TlsStream, client, server};

use super::{ChannelBinding, Transport, TransportInfo};

/// RFC 9266, section 2.
const LABEL: &[u8] = b"EXPORTER-Channel-Binding";
const LEN: usize = 32;

impl ChannelBinding {
    /// The `tls-exporter` of a rustls connection, for streams that are no [`Transport`] of themselves.
    ///
    /// None under TLS 1.2, where the exporter is unique only with the extended master secret (RFC 9266, section 3),
    /// and none before the TLS handshake is over.
    pub fn tls_exporter<D: SideData>(connection: &ConnectionCommon<D>) -> Option<Self> {
        if connection.protocol_version()? != ProtocolVersion::TLSv1_3 {
            return None;
        }
        let data = connection.export_keying_material([0; LEN], LABEL, Some(b"")).ok()?;
        Self::new(Self::TLS_EXPORTER, data).ok()
    }
}

macro_rules! transport {
    ($($stream:ty),*) => {$(
        /// With the channel binding `tls-exporter` under TLS 1.3, and what the stream underneath says of itself.
        impl<IO: Transport> Transport for $stream {
            fn describe(&self, info: &mut TransportInfo) {
                let (io, connection) = self.get_ref();
                info.channel_binding =
                    info.channel_binding.take().or_else(|| ChannelBinding::tls_exporter(connection));
                io.describe(info);
            }

            fn set_nodelay(&self) -> io::Result<()> {
                self.get_ref().0.set_nodelay()
            }
        }
    )*};
}

transport!(client::TlsStream<IO>, server::TlsStream<IO>);

/// That of the side it is.
impl<IO: Transport> Transport for TlsStream<IO> {
    fn describe(&self, info: &mut TransportInfo) {
        match self {
            Self::Client(stream) => stream.describe(info),
            Self::Server(stream) => stream.describe(info),
        }
    }

    fn set_nodelay(&self) -> io::Result<()> {
        self.get_ref().0.set_nodelay()
    }
}
