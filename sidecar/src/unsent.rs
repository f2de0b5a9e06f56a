//! The amount of data that was written to a socket and that its peer has not received.

use std::os::fd::BorrowedFd;

/// Returns how many bytes the kernel still holds for the peer. 0 if the system does not tell.
#[cfg(target_os = "linux")]
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> usize {
    use rustix::ioctl::{Getter, Opcode, ioctl};

    // `SIOCOUTQ` of tcp(7). Requests have 32 bits in the kernel, whatever the C library makes of them.
    #[expect(clippy::cast_possible_truncation, reason = "it has 32 bits")]
    const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;

    // SAFETY: on a TCP socket, this operation writes an `int`, and nothing else (tcp(7), `SIOCOUTQ`).
    let unsent = unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) };
    unsent.ok().and_then(|unsent| usize::try_from(unsent).ok()).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unsent(_: BorrowedFd<'_>) -> usize {
    0
}
