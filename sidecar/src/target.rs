//! The targets that sessions are forwarded to.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tower_challenge::Transport as _;
use tower_challenge::transport::SocketOptions;

use crate::address::{Address, TargetAddress};
use crate::socket::Socket;

/// The targets of a service. Sessions begin with one after the other, and go on to the next if one cannot be reached.
#[derive(Clone)]
pub(crate) struct Targets(Arc<Shared>);

struct Shared {
    addresses: Vec<TargetAddress>,
    next: AtomicUsize,
    timeout: Duration,
    options: SocketOptions,
}

/// The error if no target could be reached, with the reason for each.
#[derive(Debug)]
pub(crate) struct Unreachable(Vec<(TargetAddress, io::Error)>);

impl Targets {
    pub(crate) fn new(addresses: Vec<TargetAddress>, timeout: Duration, options: SocketOptions) -> Self {
        Self(Arc::new(Shared { addresses, next: AtomicUsize::new(0), timeout, options }))
    }

    /// Connects to the first target that accepts, within the timeout.
    pub(crate) async fn connect(&self) -> Result<Socket, Unreachable> {
        let Shared { addresses, next, timeout, options } = &*self.0;
        let deadline = Instant::now() + *timeout;
        let first = next.fetch_add(1, Ordering::Relaxed);
        let mut failed = Vec::new();
        for at in 0..addresses.len() {
            let address = &addresses[(first + at) % addresses.len()];
            let deadline = share(deadline, addresses.len() - at);
            match connect(&address.0, deadline).await {
                Ok(socket) => match socket.set_socket_options(options) {
                    Ok(()) => return Ok(socket),
                    Err(error) => failed.push((address.clone(), error)),
                },
                Err(error) => failed.push((address.clone(), error)),
            }
        }
        Err(Unreachable(failed))
    }
}

/// Returns the deadline of the first of this many attempts.
fn share(deadline: Instant, attempts: usize) -> Instant {
    let now = Instant::now();
    let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
    now + deadline.saturating_duration_since(now) / attempts
}

/// Resolves the name, if it is one, and tries all of its addresses.
async fn connect(address: &Address, deadline: Instant) -> io::Result<Socket> {
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    match address {
        Address::Tcp(host_port) => {
            let addrs: Vec<_> =
                timeout_at(deadline, lookup_host(host_port)).await.map_err(timed_out)??.collect();
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for (at, addr) in addrs.iter().enumerate() {
                let deadline = share(deadline, addrs.len() - at);
                match timeout_at(deadline, TcpStream::connect(addr))
                    .await
                    .unwrap_or_else(|over| Err(timed_out(over)))
                {
                    Ok(stream) => return Ok(Socket::Tcp(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        Address::Unix(path) => {
            let connecting = timeout_at(deadline, UnixStream::connect(path));
            connecting.await.map_err(timed_out)?.map(Socket::Unix)
        }
        Address::Abstract(name) => {
            let connecting = timeout_at(deadline, UnixStream::connect(abstract_path(name)));
            connecting.await.map_err(timed_out)?.map(Socket::Unix)
        }
    }
}

/// tokio takes a path that begins with a zero byte as an abstract name, without that byte.
pub(crate) fn abstract_path(name: &str) -> String {
    format!("\0{name}")
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot connect to ")?;
        for (at, (address, error)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{address}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unreachable {}
