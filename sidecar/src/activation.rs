//! Sockets that systemd passes on: `man sd_listen_fds`.

use std::env;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use listenfd::ListenFd;

use crate::listener::StdListener;

/// The sockets that were passed on. They stay open here, so that a service can be removed and added again.
pub(crate) struct Activated(Mutex<Vec<Passed>>);

struct Passed {
    /// Its `FileDescriptorName=`.
    name: String,
    socket: io::Result<StdListener>,
    lease: Weak<()>,
}

/// The use of a socket by one service. It ends when this is dropped.
pub(crate) type Lease = Arc<()>;

impl Activated {
    /// Takes the sockets from the environment. Call it once, before the runtime starts: it removes the variables.
    pub(crate) fn from_env() -> Self {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut fds = ListenFd::from_env();
        let passed = (0..fds.len()).map(|at| Passed {
            name: names.next().unwrap_or_default(),
            socket: take(&mut fds, at),
            lease: Weak::new(),
        });
        Self(Mutex::new(passed.collect()))
    }

    /// Returns a copy of the socket with this name, or of the only one.
    pub(crate) fn take(&self, name: Option<&str>) -> io::Result<(StdListener, Lease)> {
        let mut all = self.0.lock().map_err(|_| io::Error::other("a panic while sockets were taken"))?;
        let names = || all.iter().map(|passed| &*passed.name).collect::<Vec<_>>().join(", ");
        let is_it = |passed: &Passed| name.is_none_or(|name| passed.name == name);
        let problem = match (all.iter().filter(|passed| is_it(passed)).count(), name) {
            (1, _) => None,
            _ if all.is_empty() => Some("systemd has passed no socket on (LISTEN_FDS)".to_owned()),
            (0, _) => {
                Some(format!("systemd has passed no socket of this name on; the names are: {}", names()))
            }
            (count, None) => {
                Some(format!("systemd has passed {count} sockets on; choose a name: {}", names()))
            }
            (count, Some(_)) => Some(format!(
                "systemd has passed {count} sockets of this name on; give each a name of its own"
            )),
        };
        if let Some(problem) = problem {
            return Err(io::Error::other(problem));
        }
        let Some(passed) = all.iter_mut().find(|passed| is_it(passed)) else {
            unreachable!("it was counted")
        };
        if passed.lease.upgrade().is_some() {
            return Err(io::Error::other("the socket is in use by another service"));
        }
        let socket = match &passed.socket {
            Ok(socket) => socket.try_clone()?,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        let lease = Lease::default();
        passed.lease = Arc::downgrade(&lease);
        Ok((socket, lease))
    }
}

fn take(fds: &mut ListenFd, at: usize) -> io::Result<StdListener> {
    if let Ok(Some(listener)) = fds.take_tcp_listener(at) {
        return Ok(StdListener::Tcp(listener));
    }
    let unix = fds.take_unix_listener(at)?;
    unix.map(StdListener::Unix).ok_or_else(|| io::Error::other("not a socket that listens"))
}
