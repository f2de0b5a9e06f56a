use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{KeyEntry, KeyId, KeySet, KeySource, PrepareKey};
use crate::error::BoxError;

/// A [`KeySource`] that calls an asynchronous function for each lookup, e.g. to query a database or a secret manager.
///
/// The function receives the id and returns a future of `Result<impl IntoIterator<Item = KeyEntry<A>>, E>`: no entries
/// for an unknown id, and an error if the lookup failed. It is called once per handshake, with ids that unauthenticated
/// peers choose, so it should limit its own load.
///
/// ```
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge::{BoxError, Key, KeyEntry, KeyId, KeyStore};
///
/// async fn query(id: KeyId) -> Result<Option<KeyEntry<String>>, BoxError> {
///     if id != "alice" {
///         return Ok(None);
///     }
///     // Query the database for `key` here.
///     # let key = Key::generate()?;
///     Ok(Some(KeyEntry::new(id, key)?.with_metadata("Alice".to_owned())))
/// }
///
/// let keys = KeyStore::new(query);
/// let server = mutual::Server::new(keys, Audience::new("orders")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct KeyStore<F> {
    find: F,
}

impl<F> KeyStore<F> {
    /// Creates a store that calls `find`, a `Fn(KeyId) -> impl Future<Output = Result<impl IntoIterator<Item =
    /// KeyEntry<A>>, E>>` with `E: Into<BoxError>`.
    pub const fn new(find: F) -> Self {
        Self { find }
    }
}

impl<K, F, Fut, I, A, E> KeySource<K> for KeyStore<F>
where
    K: PrepareKey,
    F: Fn(KeyId) -> Fut,
    Fut: Future<Output = Result<I, E>>,
    I: IntoIterator<Item = KeyEntry<A>>,
    E: Into<BoxError>,
{
    type Metadata = A;
    type Lookup = StoreLookup<Fut, K>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let id = KeyId::new(id).ok();
        StoreLookup { find: id.clone().map(&self.find), id, prepared: PhantomData }
    }
}

pin_project! {
    /// The future of a lookup in a [`KeyStore`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct StoreLookup<Fut, K> {
        // `None` if the bytes are not a valid id, so that `find` is not called.
        #[pin]
        find: Option<Fut>,
        id: Option<KeyId>,
        prepared: PhantomData<fn() -> K>,
    }
}

impl<Fut, K, I, A, E> Future for StoreLookup<Fut, K>
where
    K: PrepareKey,
    Fut: Future<Output = Result<I, E>>,
    I: IntoIterator<Item = KeyEntry<A>>,
    E: Into<BoxError>,
{
    type Output = Result<KeySet<K, A>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (Some(find), Some(id)) = (this.find.as_pin_mut(), this.id) else {
            return Poll::Ready(KeySet::prepare(&[], []).map_err(Into::into));
        };
        let entries = ready!(find.poll(cx)).map_err(Into::into)?;
        Poll::Ready(KeySet::prepare(id.as_bytes(), entries).map_err(Into::into))
    }
}

impl<F> fmt::Debug for KeyStore<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").finish_non_exhaustive()
    }
}

impl<Fut, K> fmt::Debug for StoreLookup<Fut, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLookup").finish_non_exhaustive()
    }
}
