//! The channel binding `tls-exporter` (RFC 9266) for the streams of tokio-rustls.

use std::io;

use tokio_rustls::rustls::{ConnectionCommon, ProtocolVersion, SideData};
use tokio_rustls::{TlsStream, client, server};

use super::{ChannelBinding, SocketOptions, Transport, TransportInfo};

/// The label of the exporter (RFC 9266, section 2).
const LABEL: &[u8] = b"EXPORTER-Channel-Binding";
const LEN: usize = 32;

impl ChannelBinding {
    /// Returns the channel binding `tls-exporter` of a rustls connection, for TLS streams that do not implement
    /// [`Transport`].
    ///
    /// Returns `None` before the TLS handshake has completed, and for TLS 1.2, whose exporter is unique only with the
    /// extended master secret (RFC 9266, section 3).
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
        /// Reports the channel binding `tls-exporter` of TLS 1.3, and what the inner stream reports.
        impl<IO: Transport> Transport for $stream {
            fn describe(&self, info: &mut TransportInfo) {
                let (io, connection) = self.get_ref();
                info.channel_binding =
                    info.channel_binding.take().or_else(|| ChannelBinding::tls_exporter(connection));
                io.describe(info);
            }

            fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
                self.get_ref().0.set_socket_options(options)
            }
        }
    )*};
}

transport!(client::TlsStream<IO>, server::TlsStream<IO>);

/// Reports what the stream of its side reports.
impl<IO: Transport> Transport for TlsStream<IO> {
    fn describe(&self, info: &mut TransportInfo) {
        match self {
            Self::Client(stream) => stream.describe(info),
            Self::Server(stream) => stream.describe(info),
        }
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.get_ref().0.set_socket_options(options)
    }
}
