//! Listening sockets that outlive a reload of the configuration.

use std::fs;
use std::io;
use std::net::ToSocketAddrs as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::net::{TcpListener, UnixListener};
use tokio_util::net::Listener;

use crate::activation::{Activated, Lease};
use crate::address::{Address, ListenAddress};
use crate::mode::Mode;
use crate::socket::{Peer, Socket};

/// A bound socket. Generations of a service accept from copies of it.
#[derive(Clone)]
pub(crate) struct Bound(Arc<Inner>);

struct Inner {
    socket: StdListener,
    address: String,
    file: Option<SocketFile>,
    _lease: Option<Lease>,
}

pub(crate) enum StdListener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// Binds, or takes the socket that systemd has passed on.
    pub(crate) fn bind(address: &ListenAddress, mode: Mode, activated: &Activated) -> io::Result<Self> {
        let (socket, file, lease) = match address {
            ListenAddress::Bind(Address::Tcp(host_port)) => {
                (StdListener::Tcp(bind_tcp(host_port)?), None, None)
            }
            ListenAddress::Bind(Address::Unix(path)) => {
                let (listener, file) = bind_unix(path, mode)?;
                (StdListener::Unix(listener), Some(file), None)
            }
            ListenAddress::Bind(Address::Abstract(name)) => {
                (StdListener::Unix(bind_abstract(name)?), None, None)
            }
            ListenAddress::Systemd(name) => {
                let (listener, lease) = activated.take(name.as_deref())?;
                (listener, None, Some(lease))
            }
        };
        let address = match &socket {
            StdListener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                listener.local_addr()?.to_string()
            }
            StdListener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                address.to_string()
            }
        };
        Ok(Self(Arc::new(Inner { socket, address, file, _lease: lease })))
    }

    /// Returns whether both are the same socket.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The address, with the port that the system has chosen for port 0.
    pub(crate) fn address(&self) -> &str {
        &self.0.address
    }

    /// Changes the mode of a Unix socket that this process has made.
    pub(crate) fn set_mode(&self, mode: Mode) -> io::Result<()> {
        let file = self.0.file.as_ref().filter(|file| file.is_own());
        file.map_or(Ok(()), |file| fs::set_permissions(&file.path, fs::Permissions::from_mode(mode.0)))
    }

    /// Returns a listener, and what closes it.
    pub(crate) fn listener(&self) -> io::Result<(RetiringListener, Retire)> {
        let socket = match &self.0.socket {
            StdListener::Tcp(listener) => AsyncListener::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            StdListener::Unix(listener) => {
                AsyncListener::Unix(UnixListener::from_std(listener.try_clone()?)?)
            }
        };
        let socket = Arc::new(Mutex::new(Some(socket)));
        Ok((RetiringListener(Arc::clone(&socket)), Retire(socket)))
    }
}

/// The file of a Unix socket that this process has made. It is removed when this is dropped.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Returns whether it is still there: another process may have replaced it.
    fn is_own(&self) -> bool {
        let is_own = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        fs::symlink_metadata(&self.path).is_ok_and(is_own)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_own() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds to the first address of a name that can be bound.
fn bind_tcp(host_port: &str) -> io::Result<std::net::TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in host_port.to_socket_addrs()? {
        match listen_tcp(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// With `SO_REUSEADDR`, and a queue as long as the system allows.
fn listen_tcp(addr: std::net::SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(i32::MAX)?;
    Ok(socket.into())
}

/// Binds to a path. A socket that no process listens on any more is replaced.
fn bind_unix(path: &Path, mode: Mode) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    use std::os::unix::net::{UnixListener, UnixStream};

    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path)?;
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
    // No client can connect before it listens.
    fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
    socket.listen(i32::MAX)?;
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
    Ok((listener, file))
}

#[cfg(target_os = "linux")]
fn bind_abstract(name: &str) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn bind_abstract(_: &str) -> io::Result<std::os::unix::net::UnixListener> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"))
}

impl StdListener {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

enum AsyncListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listener that can be closed from outside, and then waits forever. Connections in its queue are left to the next
/// generation.
pub(crate) struct RetiringListener(SharedListener);

/// Closes a [`RetiringListener`].
pub(crate) struct Retire(SharedListener);

type SharedListener = Arc<Mutex<Option<AsyncListener>>>;

impl Retire {
    pub(crate) fn close(&self) {
        lock(&self.0).take();
    }
}

fn lock(shared: &SharedListener) -> MutexGuard<'_, Option<AsyncListener>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener for RetiringListener {
    type Io = Socket;
    type Addr = Peer;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        match &*lock(&self.0) {
            Some(AsyncListener::Tcp(listener)) => {
                let (stream, addr) = ready!(listener.poll_accept(cx))?;
                Poll::Ready(Ok((Socket::Tcp(stream), Peer::Tcp(addr))))
            }
            Some(AsyncListener::Unix(listener)) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                Poll::Ready(Ok((Socket::Unix(stream), Peer::Unix)))
            }
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        match &*lock(&self.0) {
            Some(AsyncListener::Tcp(listener)) => listener.local_addr().map(Peer::Tcp),
            _ => Ok(Peer::Unix),
        }
    }
}
