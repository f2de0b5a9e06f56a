//! What the programs with a command line share.
#![allow(dead_code, reason = "each program uses its part")]

pub(crate) mod admission;
pub(crate) mod capacity;
pub(crate) mod credentials;
pub(crate) mod key_file;
pub(crate) mod output;
pub(crate) mod probes;
pub(crate) mod program;
#[path = "../../shared/shutdown_signal.rs"]
pub(crate) mod shutdown_signal;
pub(crate) mod values;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
