//! Measures times, so it needs a process of its own: the tests of the other binary use up the processors.
#![allow(dead_code, reason = "the other binary uses the rest")]

mod limits;
mod metrics;
mod relay;
mod server;
mod support;
