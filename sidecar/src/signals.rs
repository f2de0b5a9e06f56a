//! The signals that control the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) enum Request {
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
}

pub(crate) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    /// A reload that was asked for while another one was running.
    reload: bool,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: false,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        if std::mem::take(&mut self.reload) {
            return Request::Reload;
        }
        tokio::select! {
            _ = self.hangup.recv() => Request::Reload,
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
        }
    }

    /// Waits for a signal to stop. The others are left to [`next`](Self::next). Cancel safe.
    pub(crate) async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => self.reload = true,
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}
