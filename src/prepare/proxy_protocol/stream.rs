use std::io;

use bytes::BytesMut;

use super::ProxyHeader;
use crate::transport::{
    ReadAhead, SocketOptions, Transport, TransportInfo, forward_async_read, forward_async_write,
};

/// A stream after its PROXY protocol header, from [`ProxyProtocol`](super::ProxyProtocol).
///
/// It reports the client's address as that of its peer: `TransportInfo::from_stream(&stream).peer_addr`. Bytes that
/// arrived together with the header are read first, and none is lost.
#[derive(Debug)]
pub struct Proxied<IO> {
    io: ReadAhead<IO>,
    header: Option<ProxyHeader>,
}

impl<IO> Proxied<IO> {
    pub(super) fn new(io: IO, read_ahead: BytesMut, header: ProxyHeader) -> Self {
        Self { io: ReadAhead::new(io, read_ahead), header: Some(header) }
    }

    /// A stream from an address that is not trusted, without a header.
    pub(super) fn direct(io: IO) -> Self {
        Self { io: ReadAhead::new(io, BytesMut::new()), header: None }
    }

    /// Returns the header. `None` if the connection is not from a trusted load balancer.
    pub const fn header(&self) -> Option<&ProxyHeader> {
        self.header.as_ref()
    }

    /// Returns the bytes that arrived together with the header and that are read first.
    pub fn read_ahead(&self) -> &[u8] {
        self.io.bytes()
    }

    /// Returns a reference to the inner stream. Bytes read from it follow [`read_ahead`](Self::read_ahead).
    pub const fn get_ref(&self) -> &IO {
        &self.io.io
    }
}

impl<IO: Transport> Transport for Proxied<IO> {
    fn describe(&self, info: &mut TransportInfo) {
        let source = self.header.as_ref().and_then(ProxyHeader::source);
        info.peer_addr = info.peer_addr.or(source);
        self.io.io.describe(info);
    }

    fn set_socket_options(&self, options: &SocketOptions) -> io::Result<()> {
        self.io.io.set_socket_options(options)
    }
}

forward_async_read!([] Proxied<IO>);
forward_async_write!([] Proxied<IO>);
