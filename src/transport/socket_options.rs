use std::time::Duration;

/// Options of TCP sockets that `serve` and `Incoming` set on accepted connections.
///
/// The default turns on
///
/// - `TCP_NODELAY`: small messages, such as those of a handshake, are sent at once;
/// - keep-alive, with a first probe after 60 seconds without traffic: a peer that vanished without closing its
///   connection does not hold its session forever.
///
/// Streams without such options, such as Unix sockets, ignore them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct SocketOptions {
    nodelay: bool,
    keepalive: Option<Duration>,
}

impl SocketOptions {
    /// How long a connection is idle before the first keep-alive probe, by default.
    const KEEPALIVE: Duration = Duration::from_secs(60);

    /// Creates the default options.
    pub const fn new() -> Self {
        Self { nodelay: true, keepalive: Some(Self::KEEPALIVE) }
    }

    /// Sets whether small segments are sent at once (`TCP_NODELAY`). Default: on.
    pub const fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Sets how long a connection is idle before the first keep-alive probe, or turns keep-alive off. Default: 60
    /// seconds.
    ///
    /// Six probes are sent, a sixth of this time apart, where the operating system allows to set that. If the peer
    /// answers none of them, reads and writes fail. Times are in whole seconds, from 1 to 32,767 (nine hours, the
    /// maximum of Linux); others are changed to the nearest of these.
    pub const fn keepalive(mut self, idle: Option<Duration>) -> Self {
        self.keepalive = idle;
        self
    }

    /// Sets the options on a socket.
    ///
    /// # Errors
    ///
    /// Returns the error of the socket. Some systems return one if the peer has closed the connection already.
    #[cfg(feature = "net")]
    pub fn apply(&self, stream: &tokio::net::TcpStream) -> std::io::Result<()> {
        use socket2::{SockRef, TcpKeepalive};

        const PROBES: u32 = 6;
        const MIN: Duration = Duration::from_secs(1);
        // Linux rejects longer ones, and then no connection could be served.
        const MAX: Duration = Duration::from_secs(32_767);

        stream.set_nodelay(self.nodelay)?;
        let socket = SockRef::from(stream);
        let Some(idle) = self.keepalive else { return socket.set_keepalive(false) };
        let idle = idle.clamp(MIN, MAX);
        let keepalive = TcpKeepalive::new().with_time(idle);
        #[cfg(any(
            target_os = "android",
            target_os = "freebsd",
            target_os = "linux",
            target_vendor = "apple"
        ))]
        let keepalive = keepalive.with_interval((idle / PROBES).max(MIN)).with_retries(PROBES);
        #[cfg(windows)]
        let keepalive = keepalive.with_interval((idle / PROBES).max(MIN));
        socket.set_tcp_keepalive(&keepalive)
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self::new()
    }
}
