use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::frame::PREFIX_LEN;

/// How many bytes are read at a time while the peer sends much: four records of 16 KiB with their lengths.
const BULK_LEN: usize = 4 * (PREFIX_LEN + 16 * 1024);

/// How many bytes are read at a time otherwise. They are read to the stack, so that nothing is allocated for a read that
/// finds nothing.
const SMALL_LEN: usize = 4096;

/// How many small reads end a bulk transfer: the end of a write is often a small part of its own.
const BULK_READS: u8 = 4;

/// Sealed records as they arrive. It holds no memory while it is empty, and never much more than a record needs.
#[derive(Default)]
pub(super) struct Incoming {
    buf: Vec<u8>,
    // How many bytes at the beginning of `buf` were taken.
    start: u32,
    // How many reads that find less than `SMALL_LEN` bytes will still be bulk reads.
    bulk_reads: u8,
}

impl Incoming {
    pub(super) fn new(read_ahead: &[u8]) -> Self {
        Self { buf: read_ahead.to_vec(), start: 0, bulk_reads: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[self.start as usize..]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start as usize..]
    }

    /// Returns the length of the first record, if that has arrived, without these bytes themselves.
    pub(super) fn sealed_len(&self) -> Option<usize> {
        self.bytes().first_chunk::<PREFIX_LEN>().map(|prefix| u16::from_be_bytes(*prefix).into())
    }

    /// Takes bytes from the beginning. The memory is freed with the last one.
    pub(super) fn advance(&mut self, len: usize) {
        let start = self.start as usize + len;
        assert!(start <= self.buf.len(), "only bytes that are there can be taken");
        self.start = u32::try_from(start).unwrap_or_else(|_| unreachable!("a few records"));
        if start == self.buf.len() {
            self.buf = Vec::new();
            self.start = 0;
        }
    }

    /// Reads from the transport once. The first record must not be complete.
    pub(super) fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let polled =
            if self.bulk_reads > 0 { self.poll_fill_bulk(io, cx) } else { self.poll_fill_small(io, cx) };
        match polled {
            Poll::Ready(Ok(SMALL_LEN..)) => self.bulk_reads = BULK_READS,
            Poll::Ready(Ok(_)) => self.bulk_reads = self.bulk_reads.saturating_sub(1),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if self.buf.capacity() > 2 * self.buf.len() {
                    self.buf.shrink_to_fit();
                }
            }
        }
        polled
    }

    fn poll_fill_bulk<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.move_to_front();
        let room = self.first_len().max(BULK_LEN) - self.buf.len();
        self.buf.reserve_exact(room);
        tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut self.buf)
    }

    fn poll_fill_small<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut space = [const { MaybeUninit::uninit() }; SMALL_LEN];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(io).poll_read(cx, &mut read))?;
        let read = read.filled();
        self.move_to_front();
        let len = self.buf.len() + read.len();
        if len > self.buf.capacity() {
            // Twice as much, so that a record in many small pieces is not copied for each; but no more than it needs.
            let capacity = (2 * self.buf.capacity()).min(self.first_len()).max(len);
            self.buf.reserve_exact(capacity - self.buf.len());
        }
        self.buf.extend_from_slice(read);
        Poll::Ready(Ok(read.len()))
    }

    fn move_to_front(&mut self) {
        self.buf.drain(..std::mem::take(&mut self.start) as usize);
    }

    /// The length of the first record with its prefix, as far as it is known.
    fn first_len(&self) -> usize {
        PREFIX_LEN + self.sealed_len().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: usize = PREFIX_LEN + 0xffff;

    /// Has `len` bytes, and then waits.
    struct Source {
        len: usize,
    }

    impl AsyncRead for Source {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.len == 0 {
                return Poll::Pending;
            }
            let len = self.len.min(buf.remaining());
            // The beginning of the longest record.
            buf.initialize_unfilled_to(len).fill(0xff);
            buf.advance(len);
            self.len -= len;
            Poll::Ready(Ok(()))
        }
    }

    fn fill(incoming: &mut Incoming, len: usize) -> usize {
        let mut io = Source { len };
        let mut most = 0;
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        while incoming.bytes().len() < LONGEST && incoming.poll_fill(&mut io, cx).is_ready() {
            most = most.max(incoming.buf.capacity());
        }
        most
    }

    #[test]
    fn holds_nothing_while_idle() {
        let mut incoming = Incoming::default();
        assert_eq!(fill(&mut incoming, 0), 0);
        assert_eq!(incoming.buf.capacity(), 0);
        fill(&mut incoming, 20_000);
        incoming.advance(20_000);
        incoming.bulk_reads = BULK_READS;
        assert_eq!(fill(&mut incoming, 0), 0);
        assert_eq!(incoming.buf.capacity(), 0);
    }

    #[test]
    fn stray_byte_holds_few_bytes() {
        for bulk_reads in [0, BULK_READS] {
            let mut incoming = Incoming { bulk_reads, ..Incoming::default() };
            fill(&mut incoming, 1);
            assert!(incoming.buf.capacity() <= 2, "{}", incoming.buf.capacity());
        }
    }

    #[test]
    fn capacity_is_bounded_by_the_record() {
        let mut incoming = Incoming::default();
        let mut most = 0;
        // Every record is followed by a part of the next one, and taken when it is complete.
        for round in 0..300_usize {
            while incoming.bytes().len() < LONGEST {
                let missing = LONGEST - incoming.bytes().len();
                most = most.max(fill(&mut incoming, missing.min(1 + round * 7919 % 50_000)));
            }
            incoming.advance(LONGEST - round * 4099 % LONGEST);
            incoming.advance(incoming.bytes().len() - round % 1000 % (incoming.bytes().len() + 1));
        }
        assert!(most <= LONGEST + SMALL_LEN, "{most}");
    }
}
