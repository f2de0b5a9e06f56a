use bytes::BytesMut;

use crate::error::HandshakeError;

/// What a codec's `decode_eof` returns: at the end of the stream a message is whole, or it is cut short, unless
/// nothing of it has come.
///
/// `message` is what `decode` made of the buffer, `rest` what it left there.
///
/// # Errors
///
/// [`HandshakeError::truncated`] for a message that is cut short.
pub fn whole_or_truncated<T>(message: Option<T>, rest: &BytesMut) -> Result<Option<T>, HandshakeError> {
    if message.is_none() && !rest.is_empty() { Err(HandshakeError::truncated()) } else { Ok(message) }
}
