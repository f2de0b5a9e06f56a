//! A stream that does not report its transport metadata.

use std::io;
use std::task::{Context, Poll};

use tokio::io::{Join, ReadHalf, SimplexStream, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::net::Listener;
use tower::service_fn;
use tower_challenge::{Connection, serve};

type Pipe = Join<ReadHalf<SimplexStream>, WriteHalf<SimplexStream>>;

struct Pipes(mpsc::Receiver<Pipe>);

impl Listener for Pipes {
    type Io = Pipe;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Pipe, ())>> {
        self.0.poll_recv(cx).map(|pipe| Ok((pipe.ok_or(io::ErrorKind::NotConnected)?, ())))
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let (_, pipes) = mpsc::channel(1);
    let service = service_fn(|_: Connection<Pipe, ()>| async { Ok::<_, io::Error>(()) });
    let _server = serve(Pipes(pipes), service);
}
