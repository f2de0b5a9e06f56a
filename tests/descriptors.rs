//! A server that has no file descriptors left: it neither spins nor loses anybody, and is back as soon as there are some.
#![cfg(all(feature = "net", target_os = "linux"))]

#[path = "support/process.rs"]
mod process;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use process::{Running, example, limited};

/// What the example uses without a key file.
const KEY: &str = "This is key!";

fn answer(nonce: &[u8]) -> [u8; 16] {
    let mac = Hmac::<Md5>::new_from_slice(KEY.as_bytes()).unwrap().chain_update(nonce);
    mac.finalize().into_bytes().into()
}

/// Answers the challenge, and has an echo of what it says.
fn go_on(client: &mut TcpStream, nonce: &[u8]) {
    client.write_all(&answer(nonce)).unwrap();
    client.write_all(b"hello\n").unwrap();
    let mut said = [0; 12 + 6];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said[12..], b"hello\n");
}

#[test]
fn without_descriptors_it_pauses_and_goes_on_when_there_are_some() {
    let mut command = example("server");
    command.args(["--listen", "127.0.0.1:0", "--timeout", "60", "--echo"]);
    let mut server = Running::start(&mut limited(&command, 40));
    let addr = server.line().strip_prefix("listening on ").expect("it says where").to_owned();

    let mut accepted = Vec::new();
    let mut queued = Vec::new();
    for _ in 0..60 {
        let mut client = TcpStream::connect(&addr).unwrap();
        // Whoever comes when there are none left waits in the kernel's queue.
        client
            .set_read_timeout(Some(Duration::from_millis(if queued.is_empty() { 1_000 } else { 10 })))
            .unwrap();
        let mut nonce = [0; 32];
        match client.read_exact(&mut nonce) {
            Ok(()) => accepted.push((client, nonce)),
            Err(_) => queued.push(client),
        }
    }
    assert!(accepted.len() >= 20 && queued.len() >= 20, "{} and {}", accepted.len(), queued.len());

    let before = server.processor_time();
    sleep(Duration::from_secs(2));
    let used = server.processor_time().saturating_sub(before);
    assert!(used <= Duration::from_millis(100), "{used:?} in two seconds is more than a twentieth");

    // One of those who were accepted goes: the first of the queue takes its place, within a second.
    drop(accepted.pop());
    let begin = Instant::now();
    let mut first = queued.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut nonce = [0; 32];
    first.read_exact(&mut nonce).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    go_on(&mut first, &nonce);

    // And none of the others is lost.
    for (client, nonce) in &mut accepted {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        go_on(client, &nonce[..]);
    }
    drop(accepted);
    for mut client in queued {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.read_exact(&mut nonce).unwrap();
        go_on(&mut client, &nonce);
    }
}
