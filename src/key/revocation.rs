use std::fmt;
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells whether a key has been revoked while sessions that were authenticated with it continue.
///
/// A [`KeyRing`](super::KeyRing) revokes a key when [`replace`](super::KeyRing::replace) removes it from its id. A source
/// of your own gives its entries the revocation of a [`Revoker`]. Sessions have it from
/// [`Authenticated::revocation`](crate::Authenticated::revocation).
///
/// A revoked key stays revoked: if the same key is added again, new sessions get another revocation.
///
/// Cheap to clone. All clones observe the same key.
#[derive(Clone)]
pub struct Revocation(Arc<State>);

#[derive(Default)]
struct State {
    revoked_at: OnceLock<Instant>,
    // Created by the first session that waits: a ring may hold a million keys.
    token: OnceLock<CancellationToken>,
}

impl Revocation {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Returns whether the key has been revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked_at().is_some()
    }

    /// Returns when the key was revoked.
    pub(crate) fn revoked_at(&self) -> Option<Instant> {
        self.0.revoked_at.get().copied()
    }

    /// Returns whether both observe the same revocation, and not only the same key.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until the key is revoked. The future does not borrow the `Revocation`.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.wait()
    }

    pub(crate) fn wait(&self) -> WaitForCancellationFutureOwned {
        self.shared_token().clone().cancelled_owned()
    }

    /// Returns a token that is cancelled when the key is revoked. Cancelling the token itself revokes nothing.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.shared_token().child_token()
    }

    fn shared_token(&self) -> &CancellationToken {
        let token = self.0.token.get_or_init(CancellationToken::new);
        // `revoke` may have looked for a token before there was one. It sets the time first.
        if self.is_revoked() {
            token.cancel();
        }
        token
    }

    pub(super) fn revoke(&self) {
        self.0.revoked_at.get_or_init(Instant::now);
        if let Some(token) = self.0.token.get() {
            token.cancel();
        }
    }
}

impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation").field("is_revoked", &self.is_revoked()).finish()
    }
}

/// Revokes a key, for key sources of your own.
///
/// ```
/// use tower_challenge::key::Revoker;
/// use tower_challenge::{Key, KeyEntry};
///
/// let revoker = Revoker::new();
/// let entry = KeyEntry::new("alice", Key::generate()?)?
///     .with_revocation(revoker.revocation());
///
/// // Later: sessions of this key can observe it.
/// revoker.revoke();
/// assert!(revoker.revocation().is_revoked());
/// # drop(entry);
/// # Ok::<(), tower_challenge::KeyError>(())
/// ```
#[derive(Debug)]
pub struct Revoker(Revocation);

impl Revoker {
    /// Creates a revoker of a key that is not revoked.
    #[must_use]
    pub fn new() -> Self {
        Self(Revocation::new())
    }

    /// Returns the revocation for the [`KeyEntry`](super::KeyEntry) of the key.
    #[must_use]
    pub fn revocation(&self) -> Revocation {
        self.0.clone()
    }

    /// Returns whether an entry, a handshake or a session still has a [`Revocation`] of this revoker. Without one, a
    /// source can forget it. Futures of [`Revocation::revoked`] and tokens do not count: hold the `Revocation` beside them.
    #[must_use]
    pub fn has_observers(&self) -> bool {
        Arc::strong_count(&self.0.0) > 1
    }

    /// Revokes the key. Dropping the `Revoker` does not.
    pub fn revoke(&self) {
        self.0.revoke();
    }
}

impl Default for Revoker {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_before_and_after() {
        let revoker = Revoker::new();
        let (before, clone) = (revoker.revocation().revoked(), revoker.revocation());
        assert!(!clone.is_revoked());
        assert!(futures::FutureExt::now_or_never(clone.revoked()).is_none());
        revoker.revoke();
        before.await;
        clone.revoked().await;
        assert!(clone.is_revoked() && clone.token().is_cancelled());
    }

    #[test]
    fn observers_are_counted_until_the_last_is_dropped() {
        let revoker = Revoker::new();
        assert!(!revoker.has_observers());
        let observers = [revoker.revocation(), revoker.revocation()];
        let [first, second] = observers;
        drop(first);
        assert!(revoker.has_observers());
        drop(second);
        assert!(!revoker.has_observers());
    }

    #[test]
    fn token_that_is_created_late_is_cancelled() {
        let revoker = Revoker::new();
        revoker.revoke();
        assert!(revoker.revocation().token().is_cancelled());
    }

    #[test]
    fn holder_of_the_token_cannot_revoke() {
        let revocation = Revoker::new().revocation();
        revocation.token().cancel();
        assert!(!revocation.token().is_cancelled() && !revocation.is_revoked());
    }

    /// However the two race, a waiting session ends.
    #[test]
    fn race_between_token_and_revoke() {
        for _ in 0..2_000 {
            let revoker = Revoker::new();
            let revocation = revoker.revocation();
            let token = std::thread::scope(|scope| {
                scope.spawn(|| revoker.revoke());
                revocation.token()
            });
            assert!(token.is_cancelled());
        }
    }
}
