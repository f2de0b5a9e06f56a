//! Records: a length of two bytes, big-endian, and a Noise transport message, whose plaintext is a type and data.

use bytes::{BufMut as _, BytesMut};

use super::cipher::{Cipher, OpenError, TAG_LEN};
use crate::frame::PREFIX_LEN;

/// The shortest sealed record, in bytes: a type and the tag.
pub(super) const MIN_SEALED_LEN: usize = 1 + TAG_LEN;
/// The longest sealed record that is sent, in bytes.
const MAX_SENT_LEN: usize = 16 * 1024;
/// The most data of one record that is sent, in bytes.
pub(super) const MAX_DATA_LEN: usize = MAX_SENT_LEN - MIN_SEALED_LEN;

/// The types of records.
pub(super) const FINISH: u8 = 0;
pub(super) const DATA: u8 = 1;
pub(super) const CLOSE: u8 = 2;

/// The length of data on the wire, in as few records as possible.
pub(super) const fn wire_len(data_len: usize) -> usize {
    data_len.saturating_add(data_len.div_ceil(MAX_DATA_LEN) * (PREFIX_LEN + MIN_SEALED_LEN))
}

/// Seals the records of one direction.
pub(super) struct Sealer(Cipher);

impl Sealer {
    pub(super) const fn new(cipher: Cipher) -> Self {
        Self(cipher)
    }

    #[cfg(test)]
    pub(super) fn cipher(&mut self) -> &mut Cipher {
        &mut self.0
    }

    /// Seals a record without data, and returns it without its length.
    pub(super) fn seal_empty(&mut self, kind: u8) -> [u8; MIN_SEALED_LEN] {
        let mut sealed = [0; MIN_SEALED_LEN];
        sealed[0] = kind;
        let tag = self.0.seal(&[], &mut sealed[..1]);
        sealed[1..].copy_from_slice(&tag);
        sealed
    }

    /// Appends records with the first bytes of `parts`, at most `max`, to `out`. Returns how many bytes they have.
    pub(super) fn seal_data<'a>(
        &mut self,
        parts: &(impl Iterator<Item = &'a [u8]> + Clone),
        max: usize,
        out: &mut BytesMut,
    ) -> usize {
        let total = parts.clone().fold(0_usize, |sum, part| sum.saturating_add(part.len())).min(max);
        out.reserve(wire_len(total));
        let mut sealed = 0;
        while sealed < total {
            let mut skip = sealed;
            let rest = parts.clone().map(move |part| {
                let skipped = part.len().min(skip);
                skip -= skipped;
                &part[skipped..]
            });
            let len = (total - sealed).min(MAX_DATA_LEN);
            self.seal(DATA, rest, len, out);
            sealed += len;
        }
        total
    }

    /// Appends a CLOSE to `out`.
    pub(super) fn seal_close(&mut self, out: &mut BytesMut) {
        self.seal(CLOSE, std::iter::empty(), 0, out);
    }

    /// Appends a record to `out`. Its data are the first `len` bytes of `parts`, at most [`MAX_DATA_LEN`].
    pub(super) fn seal<'a>(
        &mut self,
        kind: u8,
        parts: impl Iterator<Item = &'a [u8]>,
        len: usize,
        out: &mut BytesMut,
    ) {
        out.reserve(PREFIX_LEN + MIN_SEALED_LEN + len);
        let sealed_len = MIN_SEALED_LEN + len;
        out.put_u16(u16::try_from(sealed_len).unwrap_or_else(|_| unreachable!("at most 16 KiB")));
        let start = out.len();
        out.put_u8(kind);
        let mut left = len;
        for part in parts {
            let taken = part.len().min(left);
            out.put_slice(&part[..taken]);
            left -= taken;
        }
        let tag = self.0.seal(&[], &mut out[start..]);
        out.put_slice(&tag);
    }
}

/// Opens the records of one direction.
pub(super) struct Opener(Cipher);

impl Opener {
    pub(super) const fn new(cipher: Cipher) -> Self {
        Self(cipher)
    }

    #[cfg(test)]
    pub(super) fn cipher(&mut self) -> &mut Cipher {
        &mut self.0
    }

    /// Opens a record in place, without its length. Returns its type and the length of its data, which follow the type.
    pub(super) fn open(&mut self, sealed: &mut [u8]) -> Result<(u8, usize), OpenError> {
        let len = self.0.open(&[], sealed)?;
        match (sealed[..len].first(), len) {
            (Some(&DATA), _) => Ok((DATA, len - 1)),
            (Some(&kind @ (FINISH | CLOSE)), 1) => Ok((kind, 0)),
            _ => Err(OpenError),
        }
    }

    /// Opens a record that must be of this type, without data.
    pub(super) fn open_empty(&mut self, kind: u8, sealed: &mut [u8]) -> bool {
        sealed.len() == MIN_SEALED_LEN && self.open(sealed).is_ok_and(|opened| opened == (kind, 0))
    }
}
