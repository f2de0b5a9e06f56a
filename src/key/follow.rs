use std::error::Error;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::file::{KeyFile, KeyFileError, KeyFileErrorKind};
use super::{KeyEntry, KeyError};

impl KeyFile {
    /// Looks at the file at once and every `period` from then on, and whenever it is not as it was, reads it and
    /// hands its keys to `replace`. Never ends: spawn it, or `select!` it.
    ///
    /// `report` is told how each reading went: how many keys there are now, or why they are still the old ones. A
    /// file that is broken is reported once, and read again when it changes once more. One that can't be opened or
    /// read is reported once, and tried again each time: it may be this process that had no file descriptor left.
    ///
    /// Reading and `replace` run on tokio's threads for blocking work.
    ///
    /// Whether the file has changed is seen by its inode, its length and its times, at the end of all symbolic links:
    /// so it is seen too when a container runtime swaps the link to a mounted secret. Replace the file by renaming a
    /// new one over it, and nobody ever sees half of it.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tower_challenge::{KeyFile, KeyRing, one_way};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let file = KeyFile::new("/etc/orders/keys");
    /// let ring: KeyRing<one_way::PreparedKey> = KeyRing::new(file.read()?)?;
    /// let kept = ring.clone();
    /// tokio::spawn(file.follow(Duration::from_secs(5), move |keys| kept.replace(keys), |outcome| match outcome {
    ///     Ok(count) => println!("{count} keys"),
    ///     Err(error) => eprintln!("keys not replaced: {error}"),
    /// }));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch; the keys stay as they are.
    ///
    /// # Panics
    ///
    /// If `period` is zero, outside a tokio runtime that has its timer enabled, and with what `replace` panics with.
    pub async fn follow(
        self,
        period: Duration,
        replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send + 'static,
        mut report: impl FnMut(Result<usize, ReloadError>) + Send,
    ) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut follower = Follower { file: self, replace, seen: None, failed: None };
        loop {
            ticks.tick().await;
            // Reading blocks, and preparing a million keys takes seconds of a processor.
            let looked = tokio::task::spawn_blocking(move || {
                let news = follower.look();
                (follower, news)
            });
            match looked.await {
                Ok((back, news)) => {
                    follower = back;
                    news.into_iter().for_each(&mut report);
                }
                Err(error) => match error.try_into_panic() {
                    // What `replace` panics with is its owner's to see.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_) => return,
                },
            }
        }
    }
}

struct Follower<R> {
    file: KeyFile,
    replace: R,
    /// What the file looked like when it was read last.
    seen: Option<Look>,
    /// What it looked like when it could not be read, and why: told once, tried again all the same.
    failed: Option<(Look, io::ErrorKind)>,
}

impl<R: FnMut(Vec<KeyEntry>) -> Result<(), KeyError>> Follower<R> {
    /// Reads the file if it is not as it was, and says how that went unless it has been said.
    fn look(&mut self) -> Option<Result<usize, ReloadError>> {
        let mut now = Look::at(std::fs::metadata(self.file.path()));
        if self.seen.as_ref() == Some(&now) {
            return None;
        }
        let read = self.file.open().and_then(|(file, metadata)| {
            // It may be another one by now, which is not to be read and told a second time. What changes while it is
            // read is seen the next time.
            now = Look(Ok(State::of(&metadata)));
            self.file.read_from(file, &metadata)
        });
        let entries = match read {
            Ok(entries) => entries,
            Err(error) => {
                if let KeyFileErrorKind::Io(io) = error.kind() {
                    // It may be this process that is short of something: the file may never change again.
                    let failed = Some((now, io.kind()));
                    let told = self.failed == failed;
                    self.failed = failed;
                    return (!told).then_some(Err(ReloadError::File(error)));
                }
                self.seen = Some(now);
                return Some(Err(ReloadError::File(error)));
            }
        };
        (self.seen, self.failed) = (Some(now), None);
        let count = entries.len();
        Some((self.replace)(entries).map(|()| count).map_err(ReloadError::Keys))
    }
}

/// What tells one state of a file from another, or why nothing can be told.
#[derive(Clone, PartialEq)]
struct Look(Result<State, io::ErrorKind>);

impl Look {
    fn at(metadata: io::Result<Metadata>) -> Self {
        Self(metadata.map(|metadata| State::of(&metadata)).map_err(|error| error.kind()))
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

/// Why the keys are still the old ones.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReloadError {
    /// The file can't be used.
    File(KeyFileError),
    /// Its keys can't.
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

impl Error for ReloadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::File(error) => error.source(),
            Self::Keys(error) => error.source(),
        }
    }
}
