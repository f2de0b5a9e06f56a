//! Counts heap allocations: the state machines do not allocate, the driver allocates the two buffers of `Framed`.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Waker};

use futures::FutureExt as _;
use support::{acceptor, connector, key, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tower_challenge::mechanism::{self, Handshake as _, Input, Mechanism as _, Step};
use tower_challenge::one_way;

/// Counts the allocations of the current thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is forwarded to the system's allocator. The counter is a thread-local cell that does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATIONS.get();
    let value = f();
    (ALLOCATIONS.get() - before, value)
}

#[test]
fn counter_counts() {
    assert_eq!(allocations(|| (Box::new(1), vec![2])).0, 2);
}

#[test]
fn state_machines_of_one_way_do_not_allocate() {
    let client = one_way::Client::new(&key("b"));
    let server = one_way::Server::new(ring(&["a", "b", "c"]));
    let (count, peer) = allocations(|| {
        let mut sevens = |out: &mut [u8]| {
            out.fill(7);
            Ok(())
        };
        let cx = &mut mechanism::Context::with_random(&mut sevens);
        let mut client = client.start(cx).unwrap().handshake;
        let start = server.start(cx).unwrap();
        let (mut server, challenge) = (start.handshake, start.send.unwrap());
        let Ok(Step::Continue { send: Some(answer) }) = client.step(Input::Frame(challenge)) else {
            panic!("no answer")
        };
        let Ok(Step::Complete { send: Some(verdict), peer }) = server.step(Input::Frame(answer)) else {
            panic!("not accepted")
        };
        assert!(matches!(client.step(Input::Frame(verdict)), Ok(Step::Complete { .. })));
        peer
    });
    assert_eq!(peer.key_id(), &"b");
    assert_eq!(count, 0);
}

/// Includes the lookup of a known and of an unknown key id.
#[cfg(feature = "mutual")]
#[test]
fn state_machines_of_mutual_do_not_allocate() {
    use tokio_util::codec::{Decoder as _, Encoder as _};
    use tower_challenge::mutual::{Audience, Client, KeyRing, Server};

    let key = key("sixteen bytes or more");
    let ring = KeyRing::new([tower_challenge::KeyEntry::new("a", key.clone()).unwrap()]).unwrap();
    let audience = Audience::new("orders").unwrap();
    let server = Server::new(ring, audience.clone());
    for (id, accepted) in [("a", true), ("b", false)] {
        let client = Client::new(id, &key, audience.clone()).unwrap();
        let mut sevens = |out: &mut [u8]| {
            out.fill(7);
            Ok(())
        };
        let cx = &mut mechanism::Context::with_random(&mut sevens);
        let (server, client) = (server.start(cx).unwrap(), client.start(cx).unwrap());
        // The driver allocates the codec's buffer.
        let mut buf = bytes::BytesMut::with_capacity(1024);
        let (count, outcome) = allocations(|| {
            let (mut codec, challenge, mut server) = (server.codec, server.send.unwrap(), server.handshake);
            codec.encode(challenge, &mut buf).unwrap();
            let challenge = codec.decode(&mut buf).unwrap().unwrap();
            let mut client = client.handshake;
            let Ok(Step::Continue { send: Some(proof) }) = client.step(Input::Frame(challenge)) else {
                panic!()
            };
            codec.encode(proof, &mut buf).unwrap();
            let proof = codec.decode(&mut buf).unwrap().unwrap();
            let Ok(Step::LookUp(lookup)) = server.step(Input::Frame(proof)) else { panic!() };
            server.step(Input::Found(lookup.now_or_never().unwrap())).is_ok()
        });
        // On success, the secret from which keying material is exported is allocated, so that it is never moved.
        assert_eq!((count, outcome), (usize::from(accepted), accepted));
    }
}

fn fill_and_drain(from: &mut DuplexStream, to: &mut DuplexStream) {
    from.write_all(&[0; 64]).now_or_never().expect("there is room").unwrap();
    to.read_exact(&mut [0; 64]).now_or_never().expect("all bytes are there").unwrap();
}

#[test]
fn driver_allocates_two_buffers_per_side_and_a_slot_on_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Entered, and not blocked on: the loop below never yields and would use up the budget of a task.
    let _entered = runtime.enter();
    let (acceptor, connector) = (acceptor(&["key"]), connector("key"));
    // The first round also allocates what the runtime needs, such as its first timer.
    for warm in [false, true] {
        let (mut client, mut server) = tokio::io::duplex(64);
        // The pipe allocates its own buffers when they are first used.
        fill_and_drain(&mut client, &mut server);
        fill_and_drain(&mut server, &mut client);
        let (count, ()) = allocations(|| {
            let mut accept = pin!(acceptor.accept(server));
            let mut connect = pin!(connector.connect(client));
            let cx = &mut Context::from_waker(Waker::noop());
            let (mut accepted, mut connected) = (false, false);
            while !(accepted && connected) {
                if !accepted {
                    accepted = accept.as_mut().poll(cx).map(Result::unwrap).is_ready();
                }
                if !connected {
                    connected = connect.as_mut().poll(cx).map(Result::unwrap).is_ready();
                }
            }
        });
        if warm {
            // The feature `metrics` allocates the labels of a counter and of a histogram, on each side.
            let counted = if cfg!(feature = "metrics") { 2 + 2 } else { 0 };
            assert_eq!(count, 2 + 2 + 1 + counted);
        }
    }
}
