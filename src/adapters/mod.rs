//! Implementations of other crates' traits, each behind the feature that is named after the crate.

#[cfg(feature = "axum")]
pub(crate) mod axum;
#[cfg(feature = "hyper-util")]
pub(crate) mod hyper_util;
#[cfg(feature = "tonic")]
mod tonic;
