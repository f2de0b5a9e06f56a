use std::error::Error;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::file::{KeyFile, KeyFileError};
use super::{KeyEntry, KeyError};

impl KeyFile {
    /// Looks at the file at once and every `period` from then on, and whenever it is not as it was, reads it and hands its
    /// keys to `replace`. Never ends: spawn it, or `select!` it.
    ///
    /// `report` is told how each reading went: how many keys there are now, or why they are still the old ones. A file
    /// that is broken or gone is reported once, and looked at again when it changes once more.
    ///
    /// Whether the file has changed is seen by its inode, its length and its times, at the end of all symbolic links: so
    /// it is seen too when a container runtime swaps the link to a mounted secret. Replace the file by renaming a new one
    /// over it, and nobody ever sees half of it.
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
    /// If `period` is zero, and outside a tokio runtime that has its timer enabled.
    pub async fn follow(
        self,
        period: Duration,
        mut replace: impl FnMut(Vec<KeyEntry>) -> Result<(), KeyError> + Send,
        mut report: impl FnMut(Result<usize, ReloadError>) + Send,
    ) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = None;
        loop {
            ticks.tick().await;
            let (file, last) = (self.clone(), seen.clone());
            let looked = tokio::task::spawn_blocking(move || file.look(last.as_ref())).await;
            // A reading that panicked is one that failed; there is none that could.
            let Ok((now, read)) = looked else { continue };
            seen = Some(now);
            let Some(read) = read else { continue };
            report(read.map_err(ReloadError::File).and_then(|entries| {
                let count = entries.len();
                replace(entries).map(|()| count).map_err(ReloadError::Keys)
            }));
        }
    }

    /// What the file looks like, and its keys if that is not what it looked like before.
    fn look(&self, last: Option<&Look>) -> (Look, Option<Result<Vec<KeyEntry>, KeyFileError>>) {
        // Looked at before it is read: what changes in between is seen the next time.
        let now = Look::at(std::fs::metadata(self.path()));
        let read = (last != Some(&now)).then(|| self.read());
        (now, read)
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
