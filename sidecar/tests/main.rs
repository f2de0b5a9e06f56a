//! The program as operators run it: processes of its own, between plain clients and plain services. A test that needs
//! another program is ignored by default.
#![cfg(target_os = "linux")]

#[path = "../../tests/interop/support/process.rs"]
mod process;
mod support;

mod admin;
mod authentication;
mod burst;
mod commands;
mod descriptors;
mod fleet;
mod keep_alive;
mod key_files;
mod log;
mod postgres;
mod probes;
mod proxy_protocol;
mod redis;
mod reload;
mod sessions;
mod shutdown;
mod systemd;
mod targets;
mod timeouts;
mod truncation;
mod unix;
