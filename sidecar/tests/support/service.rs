//! A plain service, and plain clients.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// A service that sends the first message, echoes its input, and sends the number of bytes at the end.
pub(crate) struct Service {
    pub(crate) addr: String,
    connections: Arc<AtomicUsize>,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub(crate) fn on(listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::Relaxed);
                let stream = stream.unwrap();
                thread::spawn(move || {
                    // Some tests break the connection on purpose.
                    serve(&mut stream.try_clone().unwrap(), stream).unwrap_or_default();
                });
            }
        });
        Self { addr, connections }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Serves one connection.
pub(crate) fn serve(read: &mut impl Read, mut write: impl Write) -> io::Result<()> {
    write.write_all(b"ready\n")?;
    let echoed = io::copy(read, &mut write)?;
    write.write_all(format!("{echoed} bytes").as_bytes())
}

/// Connects like a program without a handshake.
pub(crate) fn connect(addr: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    BufReader::new(stream)
}

/// Connects and reads the first message of the service.
pub(crate) fn open(addr: &str) -> BufReader<TcpStream> {
    let mut stream = connect(addr);
    greet(&mut stream);
    stream
}

/// Reads the first message of the service.
pub(crate) fn greet(stream: &mut BufReader<impl Read>) {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

/// Sends `bytes` and reads their echo.
pub(crate) fn echo<S: Read + Write>(stream: &mut BufReader<S>, bytes: &[u8]) {
    stream.get_mut().write_all(bytes).unwrap();
    let mut received = vec![0; bytes.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
}

/// Closes the write side and reads to the end.
pub(crate) fn finish(stream: &mut BufReader<TcpStream>) -> String {
    stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

/// Reads until the connection is reset. A clean end is an error.
pub(crate) fn read_until_reset(stream: &mut impl Read) -> Vec<u8> {
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);
    let ended = ended.expect_err("the connection is reset, and not closed");
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset, "{ended}");
    received
}

/// Asserts that a client receives no byte before its connection is reset.
pub(crate) fn assert_reset_without_a_byte(addr: &str) {
    assert_eq!(read_until_reset(&mut connect(addr)), b"");
}
