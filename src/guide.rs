//! Recipes, diagrams and background that belong to no single item.
//!
//! The module has no code. It exists only in the documentation.
//!
//! | page | content |
//! |---|---|
//! | [axum](mod@axum) | an axum router for clients that hold a key |
//! | [hyper](mod@hyper) | a hyper server, and hyper-util's pooling client |
//! | [tonic](mod@tonic) | gRPC with authorization by key |
//! | [TLS with channel binding](mod@tls) | `mutual` over rustls, bound to the TLS channel |
//! | [Unix sockets](mod@unix) | keys combined with the peer's user id |
//! | [Python](mod@python) | `multiprocessing.connection` and `BaseManager` |
//! | [RPC over a framed stream](mod@rpc) | requests and responses with `into_framed` |
//! | [Proxy / sidecar](mod@proxy) | for a TCP service that you cannot change |
//! | [PROXY protocol](mod@proxy_protocol) | for a server behind a load balancer |
//! | [tower layers](mod@tower) | where to put timeouts, limits and retries |
//! | [Hardening for the public internet](mod@facing_the_internet) | settings, costs and measurements |
//! | [Migration](mod@migration) | from a hand-written handshake |
//! | [The handshakes in diagrams](mod@handshakes) | the messages of each mechanism |
//! | [Alternatives](mod@compare) | CPython, bore, rathole, spiped, SCRAM, Noise, TLS |
//! | [Design rationale](mod@design) | why the crate is built as it is |
#![allow(rustdoc::broken_intra_doc_links, reason = "a page exists only if its features are enabled")]

macro_rules! pages {
    ($($(#[$condition:meta])* $name:ident = $file:literal;)*) => {$(
        $(#[$condition])*
        // Drawings and links for rustdoc, which cannot show or link to files. They come before the page, since the
        // first definition of a link counts. Without them, a doctest that fails is reported with the right file.
        #[cfg_attr(not(doctest), doc = include_str!("../docs/img/inline.md"))]
        #[cfg_attr(not(doctest), doc = include_str!("../docs/links.md"))]
        #[doc = include_str!(concat!("../", $file))]
        pub mod $name {}
    )*};
}

// The code blocks of axum, hyper, tonic, tls and proxy_protocol need further libraries: they are doctests of
// `tests/interop`. Some of the others wait for SIGTERM, so they are doctests on Unix only.
pages! {
    #[cfg(all(doc, not(doctest), feature = "axum", feature = "mutual"))]
    axum = "docs/cookbook/axum.md";
    #[cfg(all(doc, not(doctest), feature = "hyper-util", feature = "mutual", feature = "net"))]
    hyper = "docs/cookbook/hyper.md";
    #[cfg(all(doc, not(doctest), feature = "tonic", feature = "mutual", feature = "net"))]
    tonic = "docs/cookbook/tonic.md";
    #[cfg(all(doc, not(doctest), feature = "rustls", feature = "mutual", feature = "net"))]
    tls = "docs/cookbook/tls.md";
    #[cfg(all(unix, feature = "mutual", feature = "net"))]
    unix = "docs/cookbook/unix.md";
    #[cfg(all(any(unix, not(doctest)), feature = "multiprocessing", feature = "net"))]
    python = "docs/cookbook/python.md";
    #[cfg(all(any(unix, not(doctest)), feature = "mutual", feature = "net"))]
    rpc = "docs/cookbook/rpc.md";
    #[cfg(all(any(unix, not(doctest)), feature = "mutual", feature = "net"))]
    proxy = "docs/cookbook/proxy.md";
    #[cfg(all(doc, not(doctest), feature = "proxy-protocol", feature = "mutual", feature = "net"))]
    proxy_protocol = "docs/cookbook/proxy-protocol.md";
    #[cfg(all(any(unix, not(doctest)), feature = "mutual", feature = "net"))]
    tower = "docs/cookbook/tower.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    facing_the_internet = "docs/facing-the-internet.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    migration = "docs/migration.md";
    handshakes = "docs/handshakes.md";
    compare = "COMPARE.md";
    design = "DESIGN.md";
}
