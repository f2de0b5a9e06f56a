//! Noise with a pre-shared key (`NNpsk0`), through the `snow` crate and its default provider, with the default suite of
//! the mechanism `noise`.
//!
//! The second message authenticates the server. The first transport message authenticates the client, so the client
//! sends an empty one. Both sides then have the same guarantees as in `mutual`.

use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::way::{GREETING, Key, Result, Way, in_time};

const PROTOCOL: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const TAG_LEN: usize = 16;
/// An ephemeral key and the tag of an empty payload. All lengths are fixed, so messages need no length prefix.
const HANDSHAKE_LEN: usize = 32 + TAG_LEN;

#[derive(Clone)]
pub(crate) struct Snow(Key);

impl Snow {
    pub(crate) fn new(key: &Key) -> Self {
        Self(*key)
    }

    fn builder(&self) -> Result<Builder<'_>> {
        Ok(Builder::new(PROTOCOL.parse()?).psk(0, &self.0)?)
    }
}

impl Way for Snow {
    async fn accept(self, mut io: TcpStream) -> Result<()> {
        let mut session = in_time(respond(self.builder()?.build_responder()?, &mut io)).await?;
        let mut sealed = [0; GREETING.len() + TAG_LEN];
        session.write_message(&GREETING, &mut sealed)?;
        Ok(io.write_all(&sealed).await?)
    }

    async fn connect(self, mut io: TcpStream) -> Result<()> {
        let mut session = in_time(initiate(self.builder()?.build_initiator()?, &mut io)).await?;
        let mut sealed = [0; GREETING.len() + TAG_LEN];
        io.read_exact(&mut sealed).await?;
        let mut greeting = [0; GREETING.len() + TAG_LEN];
        let len = session.read_message(&sealed, &mut greeting)?;
        if greeting[..len] == GREETING { Ok(()) } else { Err("no greeting".into()) }
    }
}

async fn initiate(mut noise: HandshakeState, io: &mut TcpStream) -> Result<TransportState> {
    send(&mut noise, io).await?;
    receive(&mut noise, io).await?;
    let mut session = noise.into_transport_mode()?;
    let mut sealed = [0; TAG_LEN];
    session.write_message(&[], &mut sealed)?;
    io.write_all(&sealed).await?;
    Ok(session)
}

async fn respond(mut noise: HandshakeState, io: &mut TcpStream) -> Result<TransportState> {
    receive(&mut noise, io).await?;
    send(&mut noise, io).await?;
    let mut session = noise.into_transport_mode()?;
    let mut sealed = [0; TAG_LEN];
    io.read_exact(&mut sealed).await?;
    session.read_message(&sealed, &mut [0; TAG_LEN])?;
    Ok(session)
}

async fn send(noise: &mut HandshakeState, io: &mut TcpStream) -> Result<()> {
    let mut message = [0; HANDSHAKE_LEN];
    noise.write_message(&[], &mut message)?;
    Ok(io.write_all(&message).await?)
}

async fn receive(noise: &mut HandshakeState, io: &mut TcpStream) -> Result<()> {
    let mut message = [0; HANDSHAKE_LEN];
    io.read_exact(&mut message).await?;
    noise.read_message(&message, &mut [0; HANDSHAKE_LEN])?;
    Ok(())
}
