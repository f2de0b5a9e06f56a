//! The doctests of the cookbook pages whose code blocks need more libraries than the root package has.
#![cfg(doctest)]

#[doc = include_str!("../../docs/cookbook/axum.md")]
pub mod axum {}
#[doc = include_str!("../../docs/cookbook/hyper.md")]
pub mod hyper {}
#[doc = include_str!("../../docs/cookbook/proxy-protocol.md")]
pub mod proxy_protocol {}
#[doc = include_str!("../../docs/cookbook/tls.md")]
pub mod tls {}
#[doc = include_str!("../../docs/cookbook/tonic.md")]
pub mod tonic {}
