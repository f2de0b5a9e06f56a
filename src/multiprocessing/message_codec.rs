use std::error::Error;
use std::fmt;
use std::io;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::debug_as_display;

/// The codec of the messages after the handshake, which CPython's `Connection` sends with `send_bytes` and receives
/// with `recv_bytes`.
///
/// ```text
///  ┌────────────┬─────────┐      ┌────────┬────────────┬─────────┐
///  │ length i32 │ message │  or  │ -1 i32 │ length u64 │ message │
///  └────────────┴─────────┘      └────────┴────────────┴─────────┘
/// ```
///
/// The integers are big-endian. The encoder uses the second form for messages of 2 GiB and more; the decoder accepts
/// both forms for every length. Python's `send` and `recv` use the same messages with a pickle in them, which this
/// codec does not decode.
///
/// Use it with [`Authenticated::into_framed`](crate::Authenticated::into_framed), as in the example of the
/// [module](super).
///
/// # Errors
///
/// For a message of more than [`max_len`](Self::max_len) bytes, decoding fails with
/// [`InvalidData`](io::ErrorKind::InvalidData) and encoding with [`InvalidInput`](io::ErrorKind::InvalidInput). The
/// inner error is a [`MessageTooLong`]. The decoder does not allocate memory for a length before the message arrives.
#[derive(Clone, Debug)]
pub struct MessageCodec {
    max_len: usize,
}

impl MessageCodec {
    /// The default of [`max_len`](Self::max_len): 8 MiB.
    pub const DEFAULT_MAX_LEN: usize = 8 * 1024 * 1024;

    const SHORT_PREFIX: usize = 4;
    const LONG_PREFIX: usize = Self::SHORT_PREFIX + 8;

    /// Creates a codec for messages of up to 8 MiB.
    #[must_use]
    pub const fn new() -> Self {
        Self { max_len: Self::DEFAULT_MAX_LEN }
    }

    /// Sets the maximum length of a message, in bytes. Default: 8 MiB.
    #[must_use]
    pub const fn max_len(mut self, bytes: usize) -> Self {
        self.max_len = bytes;
        self
    }

    /// Returns the lengths of the prefix and of the message. `None` if the prefix is incomplete.
    fn lengths(buf: &[u8]) -> Option<(usize, u64)> {
        let (short, rest) = buf.split_first_chunk::<{ Self::SHORT_PREFIX }>()?;
        match i32::from_be_bytes(*short) {
            -1 => Some((Self::LONG_PREFIX, u64::from_be_bytes(*rest.first_chunk()?))),
            // Any other negative length is invalid. As the maximum, it is rejected.
            len => Some((Self::SHORT_PREFIX, u64::try_from(len).unwrap_or(u64::MAX))),
        }
    }
}

impl Default for MessageCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for MessageCodec {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, buf: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        let Some((prefix, len)) = Self::lengths(buf) else { return Ok(None) };
        let len = usize::try_from(len).ok().filter(|&len| len <= self.max_len).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, MessageTooLong { max: self.max_len })
        })?;
        if buf.len() - prefix < len {
            return Ok(None);
        }
        buf.advance(prefix);
        Ok(Some(buf.split_to(len)))
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        match self.decode(buf)? {
            None if !buf.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            message => Ok(message),
        }
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for MessageCodec {
    type Error = io::Error;

    fn encode(&mut self, message: T, buf: &mut BytesMut) -> io::Result<()> {
        let message = message.as_ref();
        if message.len() > self.max_len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, MessageTooLong { max: self.max_len }));
        }
        buf.reserve(Self::LONG_PREFIX + message.len());
        if let Ok(len) = i32::try_from(message.len()) {
            buf.put_i32(len);
        } else {
            buf.put_i32(-1);
            buf.put_u64(message.len() as u64);
        }
        buf.put_slice(message);
        Ok(())
    }
}

/// The error of [`MessageCodec`] for a message that is longer than [`max_len`](MessageCodec::max_len).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MessageTooLong {
    max: usize,
}

debug_as_display!(MessageTooLong);

impl fmt::Display for MessageTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the message is longer than {} bytes (MessageCodec::max_len)", self.max)
    }
}

impl Error for MessageTooLong {}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(max: usize, bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let (mut codec, mut buf, mut messages) = (MessageCodec::new().max_len(max), BytesMut::new(), vec![]);
        for byte in bytes {
            buf.put_u8(*byte);
            messages.extend(codec.decode(&mut buf)?.map(|message| message.to_vec()));
        }
        assert!(codec.decode_eof(&mut buf)?.is_none());
        Ok(messages)
    }

    #[test]
    fn decodes_both_forms_byte_by_byte() {
        let bytes = b"\0\0\0\x02hi\xff\xff\xff\xff\0\0\0\0\0\0\0\x03you\0\0\0\0";
        assert_eq!(decode_all(3, bytes).unwrap(), [&b"hi"[..], b"you", b""]);
    }

    #[test]
    fn rejects_excessive_length_before_message_arrives() {
        for bytes in [
            &b"\0\0\0\x04"[..],
            b"\x7f\xff\xff\xff",
            b"\xff\xff\xff\xfe",
            b"\x80\0\0\0",
            b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x04",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let error = decode_all(3, bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(error.to_string(), "the message is longer than 3 bytes (MessageCodec::max_len)");
        }
        assert_eq!(decode_all(3, b"\0\0\0\x02h").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn encodes_and_rejects_long_message() {
        let (mut codec, mut buf) = (MessageCodec::new().max_len(3), BytesMut::new());
        codec.encode("hi", &mut buf).unwrap();
        codec.encode([], &mut buf).unwrap();
        assert_eq!(codec.encode("four", &mut buf).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(&buf[..], b"\0\0\0\x02hi\0\0\0\0");
    }
}
