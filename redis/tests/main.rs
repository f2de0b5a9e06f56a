//! Everything against a real `redis-server`, which is found in `PATH`. A test that cannot start one fails, so all of them
//! are ignored by default:
//!
//! ```text
//! cargo test -p tower-challenge-redis --test integration -- --ignored --skip million
//! ```
#![cfg(unix)]

mod commands;
mod faults;
mod metrics;
mod million;
mod penalties;
mod permissions;
mod relay;
mod revocation;
mod rollback;
mod server;
mod support;
