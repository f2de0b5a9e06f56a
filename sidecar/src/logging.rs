//! The log on the standard error, in text or JSON.

use std::io;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

use crate::args::{LogFormat, ProcessArgs};

/// Starts the log. Lines are written by a thread of their own until the guard is dropped: peers decide how much is
/// logged, and must not stall the program if the reader of the log is slow. Lines are then dropped.
pub(crate) fn init(args: &ProcessArgs) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).thread_name("log").finish(io::stderr());
    let layer = fmt::layer().with_ansi(false).with_writer(writer);
    let layer = match args.log_format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    registry().with(layer.with_filter(args.log_level.clone())).init();
    guard
}
