//! An address type that does not tell its IP address.

use std::io;
use std::task::{Context, Poll};

use tokio::io::DuplexStream;
use tokio_util::net::Listener;
use tower::service_fn;
use tower_challenge::{Connection, serve};

#[derive(Clone)]
struct Cid(u32);

struct Vsock;

impl Listener for Vsock {
    type Io = DuplexStream;
    type Addr = Cid;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, Cid)>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<Cid> {
        Ok(Cid(2))
    }
}

fn main() {
    let service = service_fn(|_: Connection<DuplexStream, Cid>| async { Ok::<_, io::Error>(()) });
    let _server = serve(Vsock, service);
}
