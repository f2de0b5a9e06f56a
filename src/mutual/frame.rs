use std::fmt;

use super::encode::{NONCE_LEN, TAG_LEN};
use crate::key::KeyId;

/// The length of the longest message: a proof with the longest id.
pub(super) const MAX_MESSAGE_LEN: usize = NONCE_LEN + 1 + KeyId::MAX_LEN + TAG_LEN;

/// A frame of the peer, not parsed yet.
///
/// No message of this wire is longer than 320 bytes. A longer frame, which no message can be, is truncated and keeps
/// its original length, so that the state machine can refuse it as it refuses any other malformed message.
pub struct Frame {
    bytes: [u8; MAX_MESSAGE_LEN],
    len: usize,
}

impl Frame {
    pub(super) fn new(content: &[u8]) -> Self {
        let mut bytes = [0; MAX_MESSAGE_LEN];
        let kept = content.len().min(MAX_MESSAGE_LEN);
        bytes[..kept].copy_from_slice(&content[..kept]);
        Self { bytes, len: content.len() }
    }

    /// Returns the bytes of the frame. `None` if it is longer than any message.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len).finish_non_exhaustive()
    }
}
