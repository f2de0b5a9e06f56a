use bytes::BytesMut;

use crate::error::HandshakeError;

/// Completes a codec's `decode_eof`: at the end of the stream, a message that is incomplete is an error.
///
/// `message` is what `decode` returned, and `rest` is the buffer after that call.
///
/// ```
/// use bytes::BytesMut;
/// use tower_challenge::mechanism::decode_eof_strict;
///
/// let empty = BytesMut::new();
/// assert_eq!(decode_eof_strict(Some("message"), &empty)?, Some("message"));
/// assert_eq!(decode_eof_strict(None::<&str>, &empty)?, None);
///
/// let half = BytesMut::from("mess");
/// assert!(decode_eof_strict(None::<&str>, &half).is_err());
/// # Ok::<(), tower_challenge::HandshakeError>(())
/// ```
///
/// # Errors
///
/// Returns [`HandshakeError::truncated`] if there is no message and `rest` is not empty.
pub fn decode_eof_strict<T>(message: Option<T>, rest: &BytesMut) -> Result<Option<T>, HandshakeError> {
    if message.is_none() && !rest.is_empty() { Err(HandshakeError::truncated()) } else { Ok(message) }
}
