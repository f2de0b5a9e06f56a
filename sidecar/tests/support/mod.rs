pub(crate) mod http;
pub(crate) mod relay;
pub(crate) mod service;
pub(crate) mod sidecar;
