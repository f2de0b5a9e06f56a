//! Ends the sessions of a revoked key.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::key::Revocation;
use crate::time::{after, poll_timer};

pin_project! {
    /// Completes when the key of a session was revoked and the grace period has passed.
    #[project = EndProj]
    pub(crate) enum End {
        Waiting { #[pin] revoked: WaitForCancellationFutureOwned, revocation: Revocation, grace: Duration },
        Grace { #[pin] timer: Sleep },
    }
}

impl End {
    pub(crate) fn new(revocation: &Revocation, grace: Duration) -> Self {
        Self::Waiting { revoked: revocation.wait(), revocation: revocation.clone(), grace }
    }
}

impl Future for End {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = match self.as_mut().project() {
                EndProj::Waiting { revoked, revocation, grace } => {
                    ready!(revoked.poll(cx));
                    // The session may not have been polled since then.
                    let revoked_at = revocation.revoked_at().unwrap_or_else(Instant::now);
                    let end = after(revoked_at, *grace);
                    // A timer would complete a little later.
                    if end <= Instant::now() {
                        return Poll::Ready(());
                    }
                    // revoked -> grace period
                    Self::Grace { timer: sleep_until(end) }
                }
                EndProj::Grace { timer } => return poll_timer(timer, cx),
            };
            self.set(next);
        }
    }
}

/// Makes reads and writes of a stream fail after the [`End`] of its session.
pub(crate) struct Guard {
    revocation: Revocation,
    grace: Duration,
    // One for each direction: they may be in different tasks, and each must be woken.
    read: Option<Pin<Box<End>>>,
    write: Option<Pin<Box<End>>>,
}

impl Guard {
    pub(crate) const fn new(revocation: Revocation, grace: Duration) -> Self {
        Self { revocation, grace, read: None, write: None }
    }

    pub(crate) const fn grace(&self) -> Duration {
        self.grace
    }

    pub(crate) fn check_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        check(&mut self.read, &self.revocation, self.grace, cx)
    }

    pub(crate) fn check_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        check(&mut self.write, &self.revocation, self.grace, cx)
    }
}

fn check(
    end: &mut Option<Pin<Box<End>>>,
    revocation: &Revocation,
    grace: Duration,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    let end = end.get_or_insert_with(|| Box::pin(End::new(revocation, grace)));
    match end.as_mut().poll(cx) {
        Poll::Pending => Ok(()),
        Poll::Ready(()) => {
            let error = "the key of this session was revoked";
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))
        }
    }
}
