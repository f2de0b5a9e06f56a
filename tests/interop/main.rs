//! Tests with other libraries and programs. A test that needs a program such as Python, curl, Redis or HAProxy is
//! ignored by default.
#![allow(clippy::duplicate_mod, reason = "several examples include the same file")]

#[path = "../support/mod.rs"]
mod support;

#[path = "support/process.rs"]
mod process;
#[path = "support/unauthenticated.rs"]
mod unauthenticated;
#[path = "support/watch.rs"]
mod watch;

mod axum;
mod bore;
mod client_observe;
mod clock;
mod descriptors;
mod examples;
mod haproxy;
mod hyper;
mod node_noise;
mod noise_http;
mod observe;
mod python;
mod python_multiprocessing;
mod python_mutual;
mod python_noise;
mod python_rhel;
mod rpc;
mod snow;
mod stack;
mod tls;
mod tls_prepare;
mod tonic;
mod unix;
