use std::marker::PhantomData;

use bytes::{Buf as _, BytesMut};
use hmac::Hmac;
use hmac::digest::Output;
use md5::Md5;
use tokio_util::codec::{Decoder, Encoder};

use super::message::{Answer, ServerMessage};
use super::{HmacDigest, Wire};
use crate::error::HandshakeError;
use crate::mechanism::decode_eof_strict;

/// The server's codec: sends the challenge and a verdict, receives the answer.
///
/// The digest determines the length of the answer. The client sends no length.
#[derive(Debug)]
pub struct ServerCodec<D = Md5> {
    wire: Wire,
    digest: PhantomData<fn() -> D>,
}

impl<D: HmacDigest> ServerCodec<D> {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, digest: PhantomData }
    }
}

impl<D: HmacDigest> Encoder<ServerMessage> for ServerCodec<D> {
    type Error = HandshakeError;

    fn encode(&mut self, message: ServerMessage, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        buf.extend_from_slice(match &message {
            ServerMessage::Challenge(nonce) => nonce.as_bytes(),
            ServerMessage::Accepted => self.wire.accepted(),
            ServerMessage::Refused => self.wire.refused(),
        });
        Ok(())
    }
}

impl<D: HmacDigest> Decoder for ServerCodec<D> {
    type Item = Answer<D>;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Answer<D>>, HandshakeError> {
        let mut answer = Output::<Hmac<D>>::default();
        Ok((buf.len() >= answer.len()).then(|| {
            buf.copy_to_slice(&mut answer);
            Answer(answer)
        }))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<Answer<D>>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}

/// The client's codec: receives the challenge and a verdict, sends the answer.
#[derive(Debug)]
pub struct ClientCodec<D = Md5> {
    wire: Wire,
    expects: Expects,
    digest: PhantomData<fn() -> D>,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Challenge,
    Verdict,
}

impl<D: HmacDigest> ClientCodec<D> {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, expects: Expects::Challenge, digest: PhantomData }
    }

    fn decode_verdict(&self, buf: &mut BytesMut) -> Result<Option<ServerMessage>, HandshakeError> {
        let Some(verdict) = buf.get(..self.wire.accepted().len()) else { return Ok(None) };
        // Verdicts are not secret, so `==` is safe.
        let message = if verdict == self.wire.accepted() {
            ServerMessage::Accepted
        } else if verdict == self.wire.refused() {
            ServerMessage::Refused
        } else {
            return Err(HandshakeError::malformed("expected one of the two verdicts"));
        };
        buf.advance(self.wire.accepted().len());
        Ok(Some(message))
    }
}

impl<D: HmacDigest> Encoder<Answer<D>> for ClientCodec<D> {
    type Error = HandshakeError;

    fn encode(&mut self, answer: Answer<D>, buf: &mut BytesMut) -> Result<(), HandshakeError> {
        buf.extend_from_slice(answer.as_bytes());
        Ok(())
    }
}

impl<D: HmacDigest> Decoder for ClientCodec<D> {
    type Item = ServerMessage;
    type Error = HandshakeError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<ServerMessage>, HandshakeError> {
        match self.expects {
            Expects::Verdict => self.decode_verdict(buf),
            Expects::Challenge if buf.len() < self.wire.nonce_len() => Ok(None),
            Expects::Challenge => {
                let mut nonce = self.wire.zeroed_nonce();
                buf.copy_to_slice(nonce.as_bytes_mut());
                // challenge decoded -> verdict expected
                self.expects = Expects::Verdict;
                Ok(Some(ServerMessage::Challenge(nonce)))
            }
        }
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<ServerMessage>, HandshakeError> {
        decode_eof_strict(self.decode(buf)?, buf)
    }
}
