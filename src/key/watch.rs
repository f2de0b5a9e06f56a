use std::error::Error;
use std::fmt;
use std::fs::Metadata;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::file::{FileKind, KeyFile, KeyFileError, KeyFileErrorKind};
use super::{KeyEntry, KeyError};
use crate::error::debug_as_display;

/// The minimum period between two checks. `interval` panics if its period is zero.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// The coarsest resolution of the times that a file system keeps: FAT has 2 seconds. A file may change within it and
/// look unchanged.
const TIME_RESOLUTION: Duration = Duration::from_secs(2);

impl KeyFile {
    /// Watches the file: checks it at once and then every `period`, re-reads it whenever its metadata changes, and
    /// passes the keys to `replace`.
    ///
    /// The future never completes. Spawn it, or use it in `select!`. A `period` of less than 1 ms counts as 1 ms.
    ///
    /// `report` is called after each attempt to read a changed file, with the number of keys that are now in use, or
    /// with the reason why the previous keys are still in use. An invalid file is reported once, and read again after
    /// its next change. A file that cannot be opened or read is reported once, and tried again after each period, since
    /// the cause may be a lack of file descriptors in this process. A FIFO is reported once and never opened.
    ///
    /// The file is read, and `replace` is called, on a thread that the watch starts. A file system that does not
    /// respond blocks that thread only, and the runtime and the process can still shut down.
    ///
    /// A change is detected by the file's inode, length and change time, after all symbolic links are resolved. This
    /// also works if a container runtime swaps the link to a mounted secret. In the first 2 seconds after a change, the
    /// content is compared as well, since the resolution of the times may be as coarse as that. To update the file,
    /// write a new file and rename it over the old one, so that a partly written file is never read.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tower_challenge::{KeyFile, one_way};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let file = KeyFile::new("/etc/orders/keys");
    /// let ring = one_way::KeyRing::new(file.read()?)?;
    /// let server = one_way::Server::new(ring.clone());
    ///
    /// tokio::spawn(file.watch(
    ///     Duration::from_secs(5),
    ///     move |keys| ring.replace(keys),
    ///     |outcome| match outcome {
    ///         Ok(count) => println!("{count} keys"),
    ///         Err(error) => eprintln!("keys not replaced: {error}"),
    ///     },
    /// ));
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch and does not block. The keys do not change, unless `replace` is being called.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with the time driver enabled, and if `replace` panics.
    pub async fn watch(
        self,
        period: Duration,
        replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static,
        mut report: impl FnMut(Result<usize, ReloadError>) + Send,
    ) {
        let mut ticks = interval(period.max(MIN_PERIOD));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = Watcher::new(self, replace);
        let mut worker = None;
        let mut spawn_failed = false;
        loop {
            ticks.tick().await;
            let jobs = match worker.take().map_or_else(start_worker, Ok) {
                Ok(jobs) => worker.insert(jobs),
                Err(error) => {
                    if !spawn_failed {
                        report(Err(ReloadError::File(watcher.file.error(KeyFileErrorKind::Io(error)))));
                    }
                    spawn_failed = true;
                    continue;
                }
            };
            spawn_failed = false;
            let (done, outcome) = oneshot::channel();
            jobs.send(Job { watcher, done }).unwrap_or_else(|_| unreachable!("the worker catches panics"));
            match outcome.await {
                Ok(Ok((returned, change))) => {
                    watcher = returned;
                    change.into_iter().for_each(&mut report);
                }
                // A panic of `replace` is passed on to the caller.
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => unreachable!("the worker catches panics"),
            }
        }
    }
}

/// One check, for the worker thread.
struct Job<R> {
    watcher: Watcher<R>,
    /// Returns the watcher and the outcome to report.
    done: oneshot::Sender<thread::Result<(Watcher<R>, Change)>>,
}

/// The outcome to report, unless it was reported before.
type Change = Option<Result<usize, ReloadError>>;

/// Starts a thread for checks, which ends when the returned sender is dropped.
///
/// A check may block forever, e.g. on a network file system that does not respond. The runtime waits for tokio's
/// blocking threads when it shuts down, so this is another thread, and it is never joined.
fn start_worker<R>() -> io::Result<mpsc::Sender<Job<R>>>
where
    R: FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static,
{
    let (sender, jobs) = mpsc::channel::<Job<R>>();
    thread::Builder::new().name("key-file-watch".to_owned()).spawn(move || {
        for Job { mut watcher, done } in jobs {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let change = watcher.check(|| done.is_closed());
                (watcher, change)
            }));
            // The receiver is gone if the watch has ended.
            drop(done.send(outcome));
        }
    })?;
    Ok(sender)
}

struct Watcher<R> {
    file: KeyFile,
    replace: R,
    /// The content that was last read.
    seen: Option<Seen>,
    /// The state of the file when it last could not be read, and the kind of the error: reported once, but tried again.
    failed: Option<(FileStamp, io::ErrorKind)>,
    /// Hashes contents. Its keys are random, so that a hash says nothing about the keys in the file.
    hasher: RandomState,
}

impl<R: FnMut(Vec<KeyEntry>) -> Result<(), KeyError>> Watcher<R> {
    fn new(file: KeyFile, replace: R) -> Self {
        Self { file, replace, seen: None, failed: None, hasher: RandomState::new() }
    }

    /// Reads the file if it may have changed, and passes its keys to `replace` unless the watch `has_ended`.
    fn check(&mut self, has_ended: impl FnOnce() -> bool) -> Change {
        let mut stamp = FileStamp::of(std::fs::metadata(self.file.path()));
        if self.seen.as_ref().is_some_and(|seen| seen.is_settled && seen.stamp == stamp) {
            return None;
        }
        let mut stamped = Instant::now();
        let read = self.file.open_regular().and_then(|opened| {
            // The file may have been replaced since it was stamped. Use the stamp of the opened file, so that its
            // content is not read and reported twice. A change during the read is seen by the next check.
            (stamp, stamped) = (FileStamp::of(Ok(opened.metadata.clone())), Instant::now());
            self.file.content(opened)
        });
        let fingerprint = match &read {
            Ok(content) => self.hasher.hash_one(&**content),
            Err(error) => {
                if let KeyFileErrorKind::Io(io) = error.kind() {
                    // The cause may be in this process, and the file may never change again. So `seen` is not set.
                    let failed = Some((stamp, io.kind()));
                    let reported = self.failed == failed;
                    self.failed = failed;
                    return (!reported).then(|| Err(ReloadError::File(read.unwrap_err())));
                }
                self.hasher.hash_one(error.to_string())
            }
        };
        let (seen, is_new) = Seen::new(stamp, stamped, fingerprint).after(self.seen.take());
        self.seen = Some(seen);
        // After an error that was reported, the keys are reported even if they are the same again.
        let is_reported = self.failed.take().is_none() && !is_new;
        if is_reported || has_ended() {
            return None;
        }
        let entries = read.and_then(|content| self.file.parse(&*content)).map_err(ReloadError::File);
        Some(entries.and_then(|entries| {
            let count = entries.len();
            (self.replace)(entries).map(|()| count).map_err(ReloadError::Keys)
        }))
    }
}

/// Content that was read, and the state of the file at that time.
struct Seen {
    stamp: FileStamp,
    /// A time after the file had this stamp first, and before it was read.
    since: Instant,
    /// Whether the file cannot change any more without a change of its stamp.
    is_settled: bool,
    /// A hash of the content, or of the reason why it could not be read.
    fingerprint: u64,
}

impl Seen {
    fn new(stamp: FileStamp, since: Instant, fingerprint: u64) -> Self {
        Self { is_settled: !stamp.has_time(), stamp, since, fingerprint }
    }

    /// Compares this with the previous content. Returns whether it differs.
    ///
    /// As long as the clock of the file system shows the time of the last change, the next change gives the file the
    /// same time, and, in place and of the same length, the same stamp. git calls such files racily clean. The clock of
    /// the file system may be that of another host, so the time in the stamp is not compared with a clock of this one.
    /// Instead, a stamp is trusted once the file has been read [`TIME_RESOLUTION`] after the stamp was first seen.
    fn after(mut self, previous: Option<Self>) -> (Self, bool) {
        match previous {
            Some(previous) if previous.stamp == self.stamp => {
                self.is_settled |= self.since.duration_since(previous.since) >= TIME_RESOLUTION;
                self.since = previous.since;
                let is_new = self.fingerprint != previous.fingerprint;
                (self, is_new)
            }
            _ => (self, true),
        }
    }
}

/// The state of a file for the detection of changes, or the reason why it is unknown.
#[derive(Clone, PartialEq)]
enum FileStamp {
    Regular(State),
    /// The kind only: the time of a FIFO changes with each use.
    Other(FileKind),
    Unknown(io::ErrorKind),
}

impl FileStamp {
    fn of(metadata: io::Result<Metadata>) -> Self {
        match metadata {
            Ok(metadata) => match FileKind::of(&metadata) {
                FileKind::Regular => Self::Regular(State::of(&metadata)),
                other => Self::Other(other),
            },
            Err(error) => Self::Unknown(error.kind()),
        }
    }

    fn has_time(&self) -> bool {
        matches!(self, Self::Regular(_))
    }
}

/// Device, inode, length, and the time of the last change of any kind, in seconds and nanoseconds.
#[cfg(unix)]
#[derive(Clone, PartialEq)]
struct State(u64, u64, u64, i64, i64);

#[cfg(unix)]
impl State {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;

        Self(metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec())
    }
}

/// Length, and the time of the last change of the content.
#[cfg(not(unix))]
#[derive(Clone, PartialEq)]
struct State(u64, Option<std::time::SystemTime>);

#[cfg(not(unix))]
impl State {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.len(), metadata.modified().ok())
    }
}

/// The reason why [`KeyFile::watch`] did not replace the keys.
#[non_exhaustive]
pub enum ReloadError {
    /// The file cannot be used.
    File(KeyFileError),
    /// The file was read, and `replace` rejected its keys.
    Keys(KeyError),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Keys(error) => error.fmt(f),
        }
    }
}

debug_as_display!(ReloadError);

impl Error for ReloadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::File(error) => error.source(),
            Self::Keys(error) => error.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content with a given stamp: few file systems give two changes the same one.
    fn seen(at: Instant, length: u64, fingerprint: u64) -> Seen {
        Seen::new(stamp(length), at, fingerprint)
    }

    #[cfg(unix)]
    fn stamp(length: u64) -> FileStamp {
        FileStamp::Regular(State(1, 2, length, 3, 4))
    }

    #[cfg(not(unix))]
    fn stamp(length: u64) -> FileStamp {
        FileStamp::Regular(State(length, None))
    }

    #[test]
    fn file_younger_than_the_resolution_of_times_is_compared() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let (first, is_new) = seen(at(0), 7, 1).after(None);
        assert!(is_new && !first.is_settled);
        // The same length and time, and another content.
        let (second, is_new) = seen(at(1), 7, 2).after(Some(first));
        assert!(is_new && !second.is_settled);
        let (third, is_new) = seen(at(1999), 7, 2).after(Some(second));
        assert!(!is_new && !third.is_settled);
        let (last, is_new) = seen(at(2000), 7, 3).after(Some(third));
        assert!(is_new && last.is_settled);
        // A new stamp is young again.
        let (changed, is_new) = seen(at(3000), 8, 3).after(Some(last));
        assert!(is_new && !changed.is_settled);
        let (changed, is_new) = seen(at(4999), 8, 3).after(Some(changed));
        assert!(!is_new && !changed.is_settled);
    }

    #[test]
    fn only_regular_files_are_compared() {
        for stamp in [FileStamp::Other(FileKind::Fifo), FileStamp::Other(FileKind::Other("directory"))] {
            let (first, is_new) = Seen::new(stamp.clone(), Instant::now(), 1).after(None);
            assert!(is_new && first.is_settled);
            let (second, is_new) = Seen::new(stamp, Instant::now(), 1).after(Some(first));
            assert!(!is_new && second.is_settled);
        }
    }

    /// With the stamp alone: the content is compared only while a file is young.
    #[test]
    fn change_in_place_of_equal_length_changes_the_stamp() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = || FileStamp::of(file.path().metadata());
        std::fs::write(file.path(), "alice:0011223344556677").unwrap();
        let before = stamp();
        assert!(before == stamp());
        // Longer than the resolution of the times of most file systems.
        thread::sleep(Duration::from_millis(50));
        std::fs::write(file.path(), "alice:8899aabbccddeeff").unwrap();
        assert!(before != stamp());
    }

    /// The cause may be in this process, and the file may never change.
    #[cfg(target_os = "linux")]
    #[test]
    fn io_error_is_reported_once_and_does_not_count_as_seen() {
        // A regular file that cannot be read from its start.
        let mut watcher = Watcher::new(KeyFile::new("/proc/self/mem"), |_| Ok(()));
        for is_reported in [true, false, false] {
            let change = watcher.check(|| false);
            assert_eq!(matches!(change, Some(Err(ReloadError::File(_)))), is_reported, "{change:?}");
            assert!(watcher.seen.is_none() && watcher.failed.is_some());
        }
    }

    #[test]
    fn keys_are_not_replaced_after_the_watch_has_ended() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, "alice:0011223344556677\n").unwrap();
        let mut watcher = Watcher::new(KeyFile::new(&*path), |_| panic!("the watch has ended"));
        assert!(watcher.check(|| true).is_none());
    }

    #[tokio::test]
    async fn period_of_zero_does_not_panic() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, "alice:0011223344556677\n").unwrap();
        let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let watch = KeyFile::new(path.to_path_buf()).watch(
            Duration::ZERO,
            |_| Ok(()),
            move |outcome| report.send(outcome.map_err(|error| error.to_string())).unwrap(),
        );
        tokio::select! {
            () = watch => unreachable!("the watch never ends"),
            outcome = reports.recv() => assert_eq!(outcome, Some(Ok(1))),
        }
    }
}
