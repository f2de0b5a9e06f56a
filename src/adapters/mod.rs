//! What the traits of other crates make of this crate's types; each behind the feature that is named after the crate.

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "hyper-util")]
mod hyper_util;
#[cfg(feature = "tonic")]
mod tonic;
