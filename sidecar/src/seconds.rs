use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest duration: a year.
const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration in seconds, which may have a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl Seconds {
    /// Returns the duration, or `None` for 0, which turns a limit off.
    pub(crate) fn unless_zero(self) -> Option<Duration> {
        Some(self.0).filter(|duration| !duration.is_zero())
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        if duration > MAX { Err("more than a year".to_owned()) } else { Ok(Self(duration)) }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_secs_f64().fmt(f)
    }
}
