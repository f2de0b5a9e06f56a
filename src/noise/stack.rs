//! That the part of the stack that is overwritten has room for what aws-lc and the digests leave there.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::aead::{Aad, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use super::Suite;
use super::cipher::STACK_OF_CHACHA20;
use super::exchange::{Initiator, Responder, hash_prologue};
use super::key::PreparedKey;
use super::message::PUBLIC_LEN;
use crate::mechanism::WIPED_STACK;

/// Calls `f`, and returns how many bytes of the stack it has written to.
fn used(f: &mut dyn FnMut()) -> usize {
    const MAX: usize = 256 * 1024;

    #[inline(never)]
    fn call(f: &mut dyn FnMut()) {
        f();
    }

    let memory = File::open("/proc/self/mem").unwrap();
    let mut below = vec![0; MAX];
    let here = 0_u8;
    let top = black_box(&raw const here) as usize;
    zeroize::zeroize_stack::<MAX>();
    call(f);
    memory.read_exact_at(&mut below, (top - MAX).try_into().unwrap()).unwrap();
    MAX - below.iter().position(|byte| *byte != 0).unwrap()
}

/// A quarter is spare, for processors that take another path.
#[track_caller]
fn assert_overwritten(name: &str, used: usize, overwritten: usize) {
    println!("{name}: {used} of {overwritten}");
    assert!(used <= overwritten / 4 * 3, "{name} uses {used} of {overwritten} bytes");
}

#[test]
fn messages_use_less_stack_than_is_overwritten() {
    let seed = Zeroizing::new([7; 32]);
    // With ChaCha20, the records' own overwriting would be counted.
    let suite = Suite::Aes256Gcm;
    let key = PreparedKey::derive(&[7; 32]);
    let prologue = hash_prologue(suite, b"alice", b"orders", None);
    let mut message = None;
    let start = used(&mut || message = Initiator::start(suite, &key, &prologue, &seed).ok());
    assert_overwritten("message 1", start, WIPED_STACK);
    let (_, message) = message.unwrap();
    let (public, tag) = message.split_first_chunk::<PUBLIC_LEN>().unwrap();
    let answer = used(&mut || {
        let open = || Responder::open(suite, &key, &prologue, public, tag.try_into().unwrap());
        let mut opened = [(); 4].map(|()| open());
        black_box(opened[3].take().unwrap().answer(public, &seed).unwrap().unwrap());
    });
    assert_overwritten("message 2", answer, WIPED_STACK);
}

#[test]
fn chacha20_uses_less_stack_than_is_overwritten() {
    for len in [0, 1, 100, 1000, 16 * 1024] {
        let algorithm = Suite::ChaCha20Poly1305.aead();
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).unwrap());
        let nonce = || Suite::ChaCha20Poly1305.nonce(7);
        let mut record = vec![0; len];
        let mut tag = None;
        let sealed = used(&mut || {
            tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut record).ok();
        });
        assert_overwritten("sealing", sealed, STACK_OF_CHACHA20);
        record.extend_from_slice(tag.unwrap().as_ref());
        let opened = used(&mut || assert!(key.open_in_place(nonce(), Aad::empty(), &mut record).is_ok()));
        assert_overwritten("opening", opened, STACK_OF_CHACHA20);
    }
}
