//! Pages that belong to no single item: recipes to copy, and what to think of.
//!
//! There is no code here, and the module exists in the documentation alone.
//!
//! | | |
//! |---|---|
//! | [The handshakes, drawn](mod@handshakes) | who says what |
//! | [Beside what else one could take](mod@compare) | CPython, bore, rathole, spiped, SCRAM, Noise, TLS |
//! | [Why it is so](mod@design) | the shape of the crate, and its reasons |
//! | [Facing the internet](mod@facing_the_internet) | what to set where strangers can reach the server, and what it costs |
//! | [Coming from a handshake written by hand](mod@migration) | the shapes that bore and rathole have, before and after |
//! | [axum](mod@axum), [hyper](mod@hyper), [tonic](mod@tonic) | HTTP and gRPC for clients that hold a key |
//! | [TLS](mod@tls), [Unix sockets](mod@unix) | bound to the channel; with the credentials of the process on the other end |
//! | [A protocol of requests and responses](mod@rpc) | over `into_framed` |
//! | [A proxy](mod@proxy) | in front of a service that knows nothing of it |
//! | [tower's own layers](mod@tower) | in which order, and why |
#![allow(rustdoc::broken_intra_doc_links, reason = "a page whose feature is off is not there")]

macro_rules! pages {
    ($($(#[$condition:meta])* $name:ident = $file:literal;)*) => {$(
        $(#[$condition])*
        // The drawings, for where no file lies beside the text: the first definition of a link counts.
        #[doc = include_str!("../docs/img/inline.md")]
        #[doc = include_str!(concat!("../", $file))]
        pub mod $name {}
    )*};
}

pages! {
    handshakes = "docs/handshakes.md";
    compare = "COMPARE.md";
    design = "DESIGN.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    facing_the_internet = "docs/facing-the-internet.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    migration = "docs/migration.md";
    #[cfg(all(feature = "axum", feature = "mutual"))]
    axum = "docs/cookbook/axum.md";
    #[cfg(all(feature = "hyper-util", feature = "mutual", feature = "net"))]
    hyper = "docs/cookbook/hyper.md";
    #[cfg(all(feature = "tonic", feature = "mutual", feature = "net"))]
    tonic = "docs/cookbook/tonic.md";
    #[cfg(all(feature = "rustls", feature = "mutual", feature = "net"))]
    tls = "docs/cookbook/tls.md";
    #[cfg(all(unix, feature = "mutual", feature = "net"))]
    unix = "docs/cookbook/unix.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    rpc = "docs/cookbook/rpc.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    proxy = "docs/cookbook/proxy.md";
    #[cfg(all(feature = "mutual", feature = "net"))]
    tower = "docs/cookbook/tower.md";
}
