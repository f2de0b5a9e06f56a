//! Random schedules against a model: a pipe in each direction. What is written comes out, once and in order, and then the
//! end, if it was sent.
//!
//! Every schedule follows from a seed, which a failure names. `NOISE_SEEDS` sets how many there are, and
//! `NOISE_FIRST_SEED` which is the first.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::FutureExt as _;
use futures::task::AtomicWaker;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower_challenge::noise::Suite;
use tower_challenge::transport::Transport;

use crate::support::{LONG, data, session_over};

const DEFAULT_SEEDS: u64 = 250;

/// The generator `SplitMix64`.
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// What happened in all schedules.
#[derive(Default)]
struct Counts {
    injected: AtomicUsize,
    split: AtomicUsize,
    cancelled_writes: AtomicUsize,
    cancelled_flushes: AtomicUsize,
    cancelled_shutdowns: AtomicUsize,
    cancelled_reads: AtomicUsize,
    awaited: AtomicUsize,
    partial_writes: AtomicUsize,
    ends: AtomicUsize,
    cuts: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How many bytes went into a transport, and how many of them were flushed.
#[derive(Default)]
struct Wire {
    written: AtomicUsize,
    flushed: AtomicUsize,
    is_shut_down: AtomicBool,
}

/// Wakes the task that polled last, like a socket's.
#[derive(Default)]
struct Slot(AtomicWaker);

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

/// A transport that is not ready at random, takes and gives as few bytes as it likes, and may buffer what is written.
struct Rough {
    io: DuplexStream,
    rng: Rng,
    /// One poll in so many is not ready; never, if it is 0.
    not_ready: usize,
    /// The most bytes of a read or write.
    most: usize,
    buffered: Option<Vec<u8>>,
    reads: Arc<Slot>,
    writes: Arc<Slot>,
    counts: Arc<Counts>,
    wire: Arc<Wire>,
}

impl Rough {
    /// Returns the waker to go on with, unless it is not ready.
    fn poll_ready(&mut self, slot: fn(&Self) -> &Arc<Slot>, cx: &Context<'_>) -> Poll<Waker> {
        let slot = Arc::clone(slot(self));
        slot.0.register(cx.waker());
        let waker = Waker::from(slot);
        if self.not_ready > 0 && self.rng.one_in(self.not_ready) {
            count(&self.counts.injected);
            waker.wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(waker)
    }

    /// How many of `len` bytes are moved now.
    fn some_of(&mut self, len: usize) -> usize {
        let some = len.min(1 + self.rng.below(self.most));
        if some < len {
            count(&self.counts.split);
        }
        some
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(buffered) = self.buffered.as_mut().filter(|buffered| !buffered.is_empty()) {
            let len = ready!(Pin::new(&mut self.io).poll_write(cx, buffered))?;
            buffered.drain(..len);
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport for Rough {}

impl AsyncRead for Rough {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let waker = ready!(self.poll_ready(|io| &io.reads, cx));
        let cx = &mut Context::from_waker(&waker);
        let len = self.some_of(buf.remaining());
        let mut part = vec![0; len];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let waker = ready!(self.poll_ready(|io| &io.writes, cx));
        let cx = &mut Context::from_waker(&waker);
        let mut len = self.some_of(buf.len());
        if self.buffered.as_ref().is_some_and(|buffered| buffered.len() >= 100) {
            ready!(self.poll_drain(cx))?;
        }
        match &mut self.buffered {
            Some(buffered) => buffered.extend_from_slice(&buf[..len]),
            None => len = ready!(Pin::new(&mut self.io).poll_write(cx, &buf[..len]))?,
        }
        self.wire.written.fetch_add(len, Ordering::Relaxed);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waker = ready!(self.poll_ready(|io| &io.writes, cx));
        let cx = &mut Context::from_waker(&waker);
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.wire.flushed.store(self.wire.written.load(Ordering::Relaxed), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waker = ready!(self.poll_ready(|io| &io.writes, cx));
        let cx = &mut Context::from_waker(&waker);
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        self.wire.flushed.store(self.wire.written.load(Ordering::Relaxed), Ordering::Relaxed);
        self.wire.is_shut_down.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

/// The model of one direction. Its bytes follow from their offset.
#[derive(Default)]
struct Model {
    /// How many bytes a write has taken.
    written: AtomicUsize,
    /// How many bytes were read.
    read: AtomicUsize,
    /// Wakes a writer that waits for the reader.
    progress: AtomicWaker,
    /// Whether a shutdown was polled.
    is_closing: AtomicBool,
    /// Whether the sender was dropped without a shutdown.
    is_dropped: AtomicBool,
    /// Whether the reader has got the end, or an error.
    has_ended: AtomicBool,
}

/// What is sent in a direction, and more.
static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| data(200_000));

#[derive(Clone, Debug)]
enum Write {
    /// A write of a buffer of this length.
    Plain(usize),
    /// A vectored write of buffers of these lengths.
    Vectored(Vec<usize>),
    Flush,
    /// Waits until the other side has read all that was written. That takes no flush, unless the transport buffers or this
    /// side has read its end.
    AwaitReader,
    Shutdown,
}

/// Writes until all is written and shut down, or until it is to be dropped.
struct Writer {
    rng: Rng,
    next: Option<Write>,
    /// How many bytes are to be written.
    left: usize,
    /// The longest buffer.
    longest: usize,
    /// After so many steps the stream is dropped.
    drops_after: Option<usize>,
    /// The bytes on the wire that correspond to what was written.
    sealed: usize,
    buffers: bool,
    model: Arc<Model>,
    /// That of the reader on the same side.
    other: Arc<Model>,
    counts: Arc<Counts>,
    wire: Arc<Wire>,
    /// Whether the other side may be gone.
    may_fail: bool,
}

const RECORD_OVERHEAD: usize = 2 + 1 + 16;
/// The most data of a record, in bytes.
const MAX_RECORD_DATA: usize = 16 * 1024 - 17;

impl Writer {
    fn choose(&mut self) -> Write {
        match self.rng.below(9) {
            _ if self.left == 0 => Write::Shutdown,
            0 => Write::Plain(0),
            1 => Write::Vectored(Vec::new()),
            2 => Write::Flush,
            8 => Write::AwaitReader,
            3 | 4 => {
                let lens = (0..self.rng.below(5)).map(|_| self.rng.below(self.longest));
                Write::Vectored(lens.collect())
            }
            _ => Write::Plain(1 + self.rng.below(self.longest)),
        }
    }

    /// Polls one future, and drops it. Returns whether writing is over.
    fn step<W: AsyncWrite + Unpin>(&mut self, io: &mut W, cx: &mut Context<'_>) -> Poll<bool> {
        if let Some(steps) = &mut self.drops_after {
            let Some(left) = steps.checked_sub(1) else { return Poll::Ready(true) };
            *steps = left;
        }
        let next = match self.next.take() {
            Some(next) => next,
            None => self.choose(),
        };
        let offset = self.model.written.load(Ordering::Relaxed);
        let (polled, cancelled) = match &next {
            Write::Plain(len) => {
                let buf = &DATA[offset..][..self.left.min(*len)];
                let polled = pin!(io.write(buf)).poll(cx);
                (polled.map_ok(|taken| self.wrote(taken, buf.len())), &self.counts.cancelled_writes)
            }
            Write::Vectored(lens) => {
                let mut left = &DATA[offset..][..self.left];
                let mut bufs = Vec::new();
                for &len in lens {
                    let (buf, rest) = left.split_at(len.min(left.len()));
                    bufs.push(IoSlice::new(buf));
                    left = rest;
                }
                let polled = pin!(io.write_vectored(&bufs)).poll(cx);
                let total = self.left - left.len();
                (polled.map_ok(|taken| self.wrote(taken, total)), &self.counts.cancelled_writes)
            }
            Write::Flush => {
                let polled = pin!(io.flush()).poll(cx);
                (polled.map_ok(|()| self.assert_flushed()), &self.counts.cancelled_flushes)
            }
            Write::AwaitReader => {
                self.model.progress.register(cx.waker());
                let no_reader = self.other.has_ended.load(Ordering::Relaxed);
                let is_sent =
                    if self.buffers || no_reader { pin!(io.flush()).poll(cx) } else { Poll::Ready(Ok(())) };
                let is_read = self.model.read.load(Ordering::Relaxed) == offset;
                let polled =
                    if is_sent.is_pending() || is_read || no_reader { is_sent } else { Poll::Pending };
                (polled, &self.counts.awaited)
            }
            Write::Shutdown => {
                self.model.is_closing.store(true, Ordering::Relaxed);
                let polled = pin!(io.shutdown()).poll(cx);
                (polled.map_ok(|()| self.assert_shut_down()), &self.counts.cancelled_shutdowns)
            }
        };
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(matches!(next, Write::Shutdown)),
            Poll::Ready(Err(error)) => {
                assert!(self.may_fail, "{next:?}: {error}");
                Poll::Ready(true)
            }
            Poll::Pending => {
                count(cancelled);
                // The same again, or something else. A shutdown cannot be taken back.
                if matches!(next, Write::Shutdown) || self.rng.one_in(2) {
                    self.next = Some(next);
                }
                Poll::Pending
            }
        }
    }

    /// A write took `taken` bytes of `len`, in as few records as possible.
    fn wrote(&mut self, taken: usize, len: usize) {
        assert!(taken <= len && (taken > 0) == (len > 0), "{taken} of {len}");
        if taken < len {
            count(&self.counts.partial_writes);
        }
        self.model.written.fetch_add(taken, Ordering::Relaxed);
        self.left -= taken;
        self.sealed += taken + taken.div_ceil(MAX_RECORD_DATA) * RECORD_OVERHEAD;
    }

    fn assert_flushed(&self) {
        assert_eq!(self.wire.flushed.load(Ordering::Relaxed), self.sealed);
    }

    fn assert_shut_down(&mut self) {
        self.sealed += RECORD_OVERHEAD;
        self.assert_flushed();
        assert!(self.wire.is_shut_down.load(Ordering::Relaxed));
    }
}

/// Reads and compares until the end.
struct Reader {
    rng: Rng,
    read: usize,
    longest: usize,
    model: Arc<Model>,
    /// That of the writer on the same side.
    other: Arc<Model>,
    counts: Arc<Counts>,
    may_fail: bool,
}

impl Reader {
    /// Polls one future, and drops it. Returns whether reading is over.
    fn step<R: AsyncRead + Unpin>(&mut self, io: &mut R, cx: &mut Context<'_>) -> Poll<bool> {
        let len = if self.rng.one_in(8) { 0 } else { 1 + self.rng.below(self.longest) };
        let mut buf = vec![0; len];
        let polled = pin!(io.read(&mut buf)).poll(cx);
        match polled {
            Poll::Pending => {
                count(&self.counts.cancelled_reads);
                Poll::Pending
            }
            Poll::Ready(Ok(0)) if len > 0 => {
                assert!(self.model.is_closing.load(Ordering::Relaxed), "an end that was not sent");
                assert_eq!(self.read, self.model.written.load(Ordering::Relaxed), "the end came early");
                // The end remains.
                assert!(matches!(pin!(io.read(&mut buf)).poll(cx), Poll::Ready(Ok(0))));
                self.end(&self.counts.ends);
                Poll::Ready(true)
            }
            Poll::Ready(Ok(len)) => {
                assert!(buf[..len] == DATA[self.read..][..len], "the bytes at {}", self.read);
                self.read += len;
                assert!(self.read <= self.model.written.load(Ordering::Relaxed));
                self.model.read.store(self.read, Ordering::Relaxed);
                self.model.progress.wake();
                Poll::Ready(false)
            }
            Poll::Ready(Err(error)) => {
                assert!(self.may_fail, "{error}");
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
                assert!(self.model.is_dropped.load(Ordering::Relaxed), "an error without a cause");
                self.end(&self.counts.cuts);
                Poll::Ready(true)
            }
        }
    }

    fn end(&self, counter: &AtomicUsize) {
        assert!(!self.model.has_ended.swap(true, Ordering::Relaxed), "two ends");
        self.other.progress.wake();
        count(counter);
    }
}

/// How the halves of a stream are used.
#[derive(Clone, Copy, Debug)]
enum Use {
    Whole,
    SplitInOneTask,
    SplitInTwoTasks,
}

/// Sets its flag when it is dropped, after the stream.
struct Dropped(Arc<Model>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.is_dropped.store(true, Ordering::Relaxed);
    }
}

/// Polls `step` until it is over. After `Pending` it may be polled again at once, which is another future.
async fn run(mut again: Rng, mut step: impl FnMut(&mut Context<'_>) -> Poll<bool>) {
    poll_fn(move |cx| {
        loop {
            match step(cx) {
                Poll::Ready(true) => return Poll::Ready(()),
                Poll::Ready(false) => {}
                Poll::Pending if again.one_in(4) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

async fn drive<IO>(mut io: IO, mut writer: Writer, mut reader: Reader, usage: Use, mut rng: Rng)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let dropped = Dropped(Arc::clone(&writer.model));
    let drops = writer.drops_after.is_some();
    let (one, two) = (rng.fork(), rng.fork());
    match usage {
        Use::Whole => {
            let (mut wrote, mut read) = (false, false);
            run(one, |cx| {
                let mut pending = true;
                if !wrote {
                    if let Poll::Ready(is_over) = writer.step(&mut io, cx) {
                        (wrote, pending) = (is_over, false);
                    }
                }
                let is_dropped = wrote && drops;
                if !read && !is_dropped {
                    if let Poll::Ready(is_over) = reader.step(&mut io, cx) {
                        (read, pending) = (is_over, false);
                    }
                }
                let is_over = wrote && (read || drops);
                if pending && !is_over { Poll::Pending } else { Poll::Ready(is_over) }
            })
            .await;
        }
        Use::SplitInOneTask | Use::SplitInTwoTasks => {
            let (mut read_half, mut write_half) = tokio::io::split(io);
            let writing = async move {
                run(one, |cx| writer.step(&mut write_half, cx)).await;
                write_half
            };
            let reading = run(two, move |cx| reader.step(&mut read_half, cx));
            // A writer that drops the stream takes the reader with it.
            match usage {
                Use::SplitInTwoTasks => {
                    let reading = tokio::spawn(reading);
                    let writing = tokio::spawn(writing).await.unwrap();
                    if drops {
                        reading.abort();
                    }
                    if let Err(error) = reading.await {
                        assert!(error.is_cancelled(), "{error}");
                    }
                    drop(writing);
                }
                _ if drops => {
                    let (reading, writing) = (pin!(reading), pin!(writing));
                    drop(futures::future::select(writing, reading).await);
                }
                _ => {
                    tokio::join!(reading, writing);
                }
            }
        }
    }
    drop(dropped);
}

/// Runs the schedule of a seed.
async fn schedule(seed: u64, counts: &Arc<Counts>) {
    let mut rng = Rng(seed);
    let suite = rng.pick(&[Suite::Aes256Gcm, Suite::ChaCha20Poly1305]);
    let size = rng.pick(&[1, 1, 2, 19, 64, 1000, 20_000, 70_000]);
    let most = rng.pick(&[1, 7, 500, 100_000]);
    let not_ready = rng.pick(&[0, 2, 8]);
    let buffers = rng.one_in(4);
    let is_slow = size.min(most) < 100;
    let ends: [(Rough, Arc<Wire>); 2] = {
        let (near, far) = duplex(size);
        [near, far].map(|io| {
            let wire = Arc::new(Wire::default());
            let buffered = buffers.then(Vec::new);
            let (counts, wire_of) = (Arc::clone(counts), Arc::clone(&wire));
            let (rng, reads, writes) = (rng.fork(), Arc::default(), Arc::default());
            (Rough { io, rng, not_ready, most, buffered, reads, writes, counts, wire: wire_of }, wire)
        })
    };
    let [(near, near_wire), (far, far_wire)] = ends;
    let (client, server) = session_over(near, far, suite).await;

    let models: [Arc<Model>; 2] = Default::default();
    // One side may drop its stream at any time.
    let dropper = rng.one_in(4).then(|| rng.below(2));
    let mut tasks = JoinSet::new();
    let mut endpoint = |index: usize, wire: Arc<Wire>| {
        let longest = rng.pick(&[1, 20, 1000, 40_000, 150_000, 150_000]);
        let writer = Writer {
            next: None,
            // The smaller the pieces, the less is sent.
            left: match longest {
                // More than a write takes at once.
                150_000 if !is_slow => 130_000 + rng.below(60_000),
                _ => rng.below(if is_slow { 600 } else { 100 * longest.min(1000) }),
            },
            longest,
            drops_after: (dropper == Some(index)).then(|| rng.below(60)),
            sealed: wire.written.load(Ordering::Relaxed),
            buffers,
            model: Arc::clone(&models[index]),
            other: Arc::clone(&models[1 - index]),
            counts: Arc::clone(counts),
            wire,
            may_fail: dropper == Some(1 - index),
            rng: rng.fork(),
        };
        let reader = Reader {
            read: 0,
            longest: rng.pick(&[1, 20, 1000, 40_000]),
            model: Arc::clone(&models[1 - index]),
            other: Arc::clone(&models[index]),
            counts: Arc::clone(counts),
            may_fail: dropper == Some(1 - index),
            rng: rng.fork(),
        };
        let usage = rng.pick(&[Use::Whole, Use::SplitInOneTask, Use::SplitInTwoTasks]);
        (writer, reader, usage, rng.fork())
    };
    let (writer, reader, usage, own) = endpoint(0, near_wire);
    tasks.spawn(drive(client, writer, reader, usage, own));
    let (writer, reader, usage, own) = endpoint(1, far_wire);
    tasks.spawn(drive(server, writer, reader, usage, own));
    // Time is paused: it passes as soon as every task waits for another one.
    timeout(LONG, tasks.join_all()).await.expect("no deadlock");

    for (index, model) in models.iter().enumerate() {
        let reader_is_gone = dropper == Some(1 - index);
        assert!(reader_is_gone || model.has_ended.load(Ordering::Relaxed), "no end");
    }
}

#[test]
fn streams_behave_like_pipes() {
    let variable = |name, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (first, seeds) = (variable("NOISE_FIRST_SEED", 0), variable("NOISE_SEEDS", DEFAULT_SEEDS));
    let counts = Arc::new(Counts::default());
    for seed in first..first + seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let outcome = AssertUnwindSafe(schedule(seed, &counts)).catch_unwind();
        if let Err(panic) = runtime.block_on(outcome) {
            eprintln!("the schedule of seed {seed} failed: NOISE_FIRST_SEED={seed} NOISE_SEEDS=1");
            std::panic::resume_unwind(panic);
        }
    }
    if seeds < DEFAULT_SEEDS {
        return;
    }
    // Each kind of event has occurred.
    for (name, counter) in [
        ("injected", &counts.injected),
        ("split", &counts.split),
        ("cancelled writes", &counts.cancelled_writes),
        ("cancelled flushes", &counts.cancelled_flushes),
        ("cancelled shutdowns", &counts.cancelled_shutdowns),
        ("cancelled reads", &counts.cancelled_reads),
        ("awaited", &counts.awaited),
        ("partial writes", &counts.partial_writes),
        ("ends", &counts.ends),
        ("cuts", &counts.cuts),
    ] {
        let count = counter.load(Ordering::Relaxed);
        println!("{name}: {count}");
        assert!(count > 20, "{name}: {count}");
    }
}
