//! Integration tests that need only Rust and the light dependencies.

mod support;

mod admission;
mod bursts;
mod callback;
mod client;
mod deadline;
mod dialects;
mod drawings;
mod errors;
mod incoming;
mod key_file;
mod leaks;
mod mechanism;
mod multiprocessing;
mod mutual;
mod one_way;
mod penalties;
mod prepare;
mod revocation;
mod selfie;
mod serve;
mod server;
mod socket_options;
mod tampering;
mod watch;
mod with_info;
