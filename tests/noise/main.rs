//! `noise` over pipes: what arrives is what was sent, in order and once, and everything else is an error.
#![cfg(feature = "noise")]

mod attacks;
#[cfg(feature = "net")]
mod finish;
mod handshake;
mod pipe;
mod stream;
mod support;
