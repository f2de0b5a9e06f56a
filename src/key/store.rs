use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{FoundKeys, KeyEntry, KeyId, Keys, LookupError, PrepareKey};

/// Asks a function for the keys of an id: a database, a secret manager, anything asynchronous.
///
/// The function is given the id and returns a future of the entries, `Result<impl IntoIterator<Item = KeyEntry<A>>,
/// E>`: none for an id that it does not know, an error if it could not find out. It is called for ids that strangers
/// choose, once a handshake: it should have limits of its own.
///
/// ```
/// use tower_challenge::mutual::{self, Audience};
/// use tower_challenge::{Key, KeyEntry, KeyId, KeyStore};
///
/// async fn query(id: KeyId) -> std::io::Result<Vec<KeyEntry<String>>> {
///     // Ask the database here.
///     # let key = || Key::generate().map_err(std::io::Error::other);
///     Ok(match id.as_bytes() {
///         b"alice" => vec![KeyEntry::new(id, key()?).expect("a valid id").attach("Alice".to_owned())],
///         _ => vec![],
///     })
/// }
///
/// let server = mutual::Server::new(KeyStore::new(query), Audience::new("orders")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct KeyStore<F> {
    find: F,
}

impl<F> KeyStore<F> {
    /// A store that asks `find`, a `Fn(KeyId) -> impl Future<Output = Result<impl IntoIterator<Item = KeyEntry<A>>,
    /// E>>`.
    pub const fn new(find: F) -> Self {
        Self { find }
    }
}

impl<K, F, Fut, I, A, E> Keys<K> for KeyStore<F>
where
    K: PrepareKey,
    F: Fn(KeyId) -> Fut,
    Fut: Future<Output = Result<I, E>>,
    I: IntoIterator<Item = KeyEntry<A>>,
    E: Into<LookupError>,
{
    type Attached = A;
    type Lookup = StoreLookup<Fut, K>;

    fn look_up(&self, id: &[u8]) -> Self::Lookup {
        let id = KeyId::new(id).ok();
        StoreLookup { find: id.clone().map(&self.find), id, prepared: PhantomData }
    }
}

pin_project! {
    /// A lookup in a [`KeyStore`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct StoreLookup<Fut, K> {
        // None for what can't be an id: nobody has to be asked.
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
    E: Into<LookupError>,
{
    type Output = Result<FoundKeys<K, A>, LookupError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (Some(find), Some(id)) = (this.find.as_pin_mut(), this.id) else {
            return Poll::Ready(FoundKeys::prepare(&[], []).map_err(Into::into));
        };
        let entries = ready!(find.poll(cx)).map_err(Into::into)?;
        Poll::Ready(FoundKeys::prepare(id.as_bytes(), entries).map_err(Into::into))
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
