//! `snow` and a record layer as small as it can be: a length of two bytes before each record of 16 KiB. A write of 64 KiB
//! is one write to the socket, and a read takes all that has arrived. There is no end of the stream, no rekeying and no
//! cancel safety.

use std::io;

use snow::params::NoiseParams;
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver, RingResolver};
use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::way::{Result, Stream, Way};

const PROTOCOL: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const TAG_LEN: usize = 16;
const PREFIX_LEN: usize = 2;
/// An ephemeral key and the tag of an empty payload.
const HANDSHAKE_LEN: usize = 32 + TAG_LEN;
/// The data of one record.
const DATA_LEN: usize = 16 * 1024;
const RECORD_LEN: usize = PREFIX_LEN + DATA_LEN + TAG_LEN;
const BUFFER_LEN: usize = 4 * RECORD_LEN;

#[derive(Clone)]
pub(crate) struct Snow {
    key: [u8; 32],
    params: NoiseParams,
    resolver: fn() -> Box<dyn CryptoResolver + Send>,
}

impl Snow {
    /// The pure Rust implementations that `snow` takes by default.
    pub(crate) fn with_default_resolver() -> Self {
        Self::new(|| Box::new(DefaultResolver))
    }

    /// What the feature `ring-accelerated` selects: ring, and the default for X25519, which ring does not offer.
    pub(crate) fn with_ring() -> Self {
        Self::new(|| Box::new(FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver))))
    }

    fn new(resolver: fn() -> Box<dyn CryptoResolver + Send>) -> Self {
        Self { key: [7; 32], params: PROTOCOL.parse().expect("a protocol"), resolver }
    }

    fn builder(&self) -> Result<Builder<'_>> {
        Ok(Builder::with_resolver(self.params.clone(), (self.resolver)()).psk(0, &self.key)?)
    }

    /// Both sides of a handshake in memory, with the first message of the client.
    pub(crate) fn handshake(&self) -> Result<(TransportState, TransportState)> {
        let (mut message, mut payload) = ([0; HANDSHAKE_LEN], [0; HANDSHAKE_LEN]);
        let (mut client, mut server) =
            (self.builder()?.build_initiator()?, self.builder()?.build_responder()?);
        client.write_message(&[], &mut message)?;
        server.read_message(&message, &mut payload)?;
        server.write_message(&[], &mut message)?;
        client.read_message(&message, &mut payload)?;
        let (mut client, mut server) = (client.into_transport_mode()?, server.into_transport_mode()?);
        let len = client.write_message(&[0], &mut message)?;
        server.read_message(&message[..len], &mut payload)?;
        Ok((client, server))
    }
}

impl Way for Snow {
    type Accepted = SnowStream;
    type Connected = SnowStream;

    async fn accept(self, mut io: TcpStream) -> Result<SnowStream> {
        let mut noise = self.builder()?.build_responder()?;
        read(&mut noise, &mut io).await?;
        write(&mut noise, &mut io).await?;
        Ok(SnowStream::new(io, noise.into_transport_mode()?))
    }

    async fn connect(self, mut io: TcpStream) -> Result<SnowStream> {
        let mut noise = self.builder()?.build_initiator()?;
        write(&mut noise, &mut io).await?;
        read(&mut noise, &mut io).await?;
        Ok(SnowStream::new(io, noise.into_transport_mode()?))
    }
}

async fn write(noise: &mut HandshakeState, io: &mut TcpStream) -> Result<()> {
    let mut message = [0; HANDSHAKE_LEN];
    noise.write_message(&[], &mut message)?;
    Ok(io.write_all(&message).await?)
}

async fn read(noise: &mut HandshakeState, io: &mut TcpStream) -> Result<()> {
    let mut message = [0; HANDSHAKE_LEN];
    io.read_exact(&mut message).await?;
    noise.read_message(&message, &mut [0; HANDSHAKE_LEN])?;
    Ok(())
}

pub(crate) struct SnowStream {
    io: TcpStream,
    session: TransportState,
    outgoing: Vec<u8>,
    /// Sealed records, in this range.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// Data that did not fit the buffer of the caller.
    opened: Vec<u8>,
}

impl SnowStream {
    fn new(io: TcpStream, session: TransportState) -> Self {
        let (outgoing, incoming) = (vec![0; BUFFER_LEN], vec![0; BUFFER_LEN]);
        Self { io, session, outgoing, incoming, start: 0, end: 0, opened: Vec::new() }
    }

    /// The next record, if all of it has arrived.
    fn record(&mut self) -> Option<std::ops::Range<usize>> {
        let prefix = self.incoming[self.start..self.end].first_chunk::<PREFIX_LEN>()?;
        let begin = self.start + PREFIX_LEN;
        let end = begin + usize::from(u16::from_be_bytes(*prefix));
        if end > self.end {
            return None;
        }
        self.start = end;
        Some(begin..end)
    }
}

impl Stream for SnowStream {
    async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        for several in data.chunks(BUFFER_LEN / RECORD_LEN * DATA_LEN) {
            let mut len = 0;
            for data in several.chunks(DATA_LEN) {
                let (prefix, record) = self.outgoing[len..].split_at_mut(PREFIX_LEN);
                let sealed = self.session.write_message(data, record).map_err(io::Error::other)?;
                prefix.copy_from_slice(&u16::try_from(sealed).map_err(io::Error::other)?.to_be_bytes());
                len += PREFIX_LEN + sealed;
            }
            self.io.write_all(&self.outgoing[..len]).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, data: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.opened.is_empty() {
                let len = self.opened.len().min(data.len());
                data[..len].copy_from_slice(&self.opened[..len]);
                self.opened.drain(..len);
                return Ok(len);
            }
            if let Some(record) = self.record() {
                let plain_len = record.len().saturating_sub(TAG_LEN);
                if plain_len <= data.len() {
                    // Straight to the caller.
                    return self.session.read_message(&self.incoming[record], data).map_err(io::Error::other);
                }
                self.opened.resize(plain_len, 0);
                self.session
                    .read_message(&self.incoming[record], &mut self.opened)
                    .map_err(io::Error::other)?;
                continue;
            }
            self.incoming.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.io.read(&mut self.incoming[self.end..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => self.end += len,
            }
        }
    }
}
