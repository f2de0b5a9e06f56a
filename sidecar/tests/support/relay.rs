//! The network between the two sides: a relay that holds data back, and that cuts connections.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

pub(crate) struct Relay {
    pub(crate) addr: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<[TcpStream; 2]>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_held: bool,
    // How many chunks wait.
    waiting: usize,
    is_cut: bool,
}

impl Relay {
    pub(crate) fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        let (target, relay) = (target.to_owned(), Arc::clone(&shared));
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&target).unwrap());
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let relay = Arc::clone(&relay);
                    thread::spawn(move || relay.copy(from, to));
                }
                relay.connections.lock().unwrap().push([near, far]);
            }
        });
        Self { addr, shared }
    }

    /// Holds back what arrives from now on.
    pub(crate) fn hold(&self) {
        self.shared.state.lock().unwrap().is_held = true;
    }

    /// Waits until something is held back.
    pub(crate) fn wait_held(&self) {
        let state = self.shared.state.lock().unwrap();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, Duration::from_secs(60), |state| state.waiting == 0);
        assert!(waited.unwrap().0.waiting > 0, "nothing arrives");
    }

    /// Passes on what was held back.
    pub(crate) fn release(&self) {
        self.shared.state.lock().unwrap().is_held = false;
        self.shared.changed.notify_all();
    }

    /// Closes all connections, as an intermediary does that does not know where the data end.
    pub(crate) fn close(&self) {
        for stream in self.shared.connections.lock().unwrap().iter().flatten() {
            // Kept, since a socket that is dropped with unread data is reset.
            stream.shutdown(Shutdown::Write).unwrap();
        }
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.shared.state.lock().unwrap().is_cut = true;
        for stream in self.shared.connections.lock().unwrap().drain(..).flatten() {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            // The threads stop reading. The last one that drops its copy of the socket resets it.
            stream.shutdown(Shutdown::Read).unwrap();
        }
    }
}

impl Shared {
    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buf = [0; 16 * 1024];
        // Tests in which one of the sidecars fails have no relay, since this one would pass on a reset as an end.
        while let Ok(len @ 1..) = from.read(&mut buf) {
            let mut state = self.state.lock().unwrap();
            state.waiting += 1;
            self.changed.notify_all();
            let mut state = self.changed.wait_while(state, |state| state.is_held).unwrap();
            state.waiting -= 1;
            drop(state);
            if to.write_all(&buf[..len]).is_err() {
                return;
            }
        }
        if !self.state.lock().unwrap().is_cut {
            to.shutdown(Shutdown::Write).unwrap_or_default();
        }
    }
}
