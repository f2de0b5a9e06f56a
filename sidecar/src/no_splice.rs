//! Systems without `splice(2)`: bytes are copied.

use std::convert::Infallible;
use std::io;
use std::task::{Context, Poll};

use crate::socket::Socket;

/// Allows no pipes.
pub(crate) const fn set_limit(_: usize) -> usize {
    0
}

/// A pipe that cannot be made.
pub(crate) struct Pipe(Infallible);

impl Pipe {
    pub(crate) fn take() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) const fn is_empty(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn poll_fill(&mut self, _: &mut Context<'_>, _: &Socket) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    pub(crate) fn poll_drain(&mut self, _: &mut Context<'_>, _: &Socket) -> Poll<io::Result<usize>> {
        match self.0 {}
    }
}
