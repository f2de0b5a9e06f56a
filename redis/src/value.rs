//! The values in Redis: parsed, opened and sealed.

use tower_challenge::{Key, KeyId};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::secret::{OVERHEAD, Place, StoreSecret};

/// The first byte of every value.
const VERSION: u8 = 1;

/// The longest value that is parsed, in bytes: four keys of 1,024 bytes fit.
const MAX_LEN: usize = 8 * 1024;

/// The most keys of an id, as the mechanisms have it.
pub(crate) const MAX_KEYS: usize = 4;

/// How the keys of a store are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each id has keys of its own, which are sealed in Redis.
    Sealed,
    /// The key of each id is derived from the secret. Redis has the revoked ids only.
    Derived,
}

/// Says that a store was initialized. Without it, an empty store is a wiped one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) form: Form,
    /// Random, and a part of what every value is bound to.
    pub(crate) store: [u8; 16],
}

const MARKER_HEAD_LEN: usize = 2 + 16;

impl Marker {
    pub(crate) fn generate(form: Form) -> Result<Self, Error> {
        let random = Key::generate()?;
        Ok(Self { form, store: random.expose_secret()[..16].try_into().expect("32 bytes") })
    }

    pub(crate) fn seal(&self, secret: &StoreSecret) -> Result<Vec<u8>, Error> {
        let head = self.head();
        let sealed = secret.seal(&Self::place(&head), &[])?;
        Ok([&head[..], &sealed].concat())
    }

    pub(crate) fn open(secret: &StoreSecret, value: &[u8]) -> Result<Self, Error> {
        let (head, sealed) = value.split_first_chunk::<MARKER_HEAD_LEN>().ok_or(Error::WrongMarker)?;
        if secret.open(&Self::place(head), sealed).is_none_or(|opened| !opened.is_empty()) {
            return Err(Error::WrongMarker);
        }
        let form = match head[1] {
            0 => Form::Sealed,
            1 => Form::Derived,
            _ => return Err(Error::WrongMarker),
        };
        Ok(Self { form, store: head[2..].try_into().expect("16 bytes") })
    }

    fn head(&self) -> [u8; MARKER_HEAD_LEN] {
        let mut head = [0; MARKER_HEAD_LEN];
        head[0] = VERSION;
        head[1] = match self.form {
            Form::Sealed => 0,
            Form::Derived => 1,
        };
        head[2..].copy_from_slice(&self.store);
        head
    }

    fn place(head: &[u8; MARKER_HEAD_LEN]) -> Place<'_> {
        Place { kind: "marker", store: head, id: None, version: 0 }
    }
}

/// A key, and when it is valid.
#[derive(Clone, Debug)]
pub(crate) struct StoredKey {
    pub(crate) key: Key,
    /// In seconds since 1970.
    pub(crate) not_before: u64,
    pub(crate) not_after: Option<u64>,
}

impl StoredKey {
    /// Returns whether the key is valid at this time, in seconds since 1970.
    pub(crate) fn is_valid(&self, now: u64) -> bool {
        self.not_before <= now && self.not_after.is_none_or(|end| now < end)
    }

    /// Returns the next time at which that changes.
    pub(crate) fn next_change(&self, now: u64) -> Option<u64> {
        [Some(self.not_before), self.not_after].into_iter().flatten().filter(|change| *change > now).min()
    }
}

/// The keys of an id. Versions of an id only grow.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) version: u64,
    pub(crate) keys: Vec<StoredKey>,
}

impl Keys {
    pub(crate) fn seal(&self, secret: &StoreSecret, marker: &Marker, id: &KeyId) -> Result<Vec<u8>, Error> {
        let mut plain = Zeroizing::new(vec![u8::try_from(self.keys.len()).expect("at most four")]);
        // So that no reallocation leaves a copy.
        plain.reserve_exact(self.keys.iter().map(|key| 18 + key.key.expose_secret().len()).sum());
        for key in &self.keys {
            let bytes = key.key.expose_secret();
            plain.extend_from_slice(&key.not_before.to_be_bytes());
            plain.extend_from_slice(&key.not_after.unwrap_or(u64::MAX).to_be_bytes());
            plain.extend_from_slice(&u16::try_from(bytes.len()).expect("checked when added").to_be_bytes());
            plain.extend_from_slice(bytes);
        }
        seal("keys", secret, marker, id, self.version, &plain)
    }

    /// Opens a value. `None` if it was changed, or is not of this place.
    pub(crate) fn open(secret: &StoreSecret, marker: &Marker, id: &KeyId, value: &[u8]) -> Option<Self> {
        let (version, plain) = open("keys", secret, marker, id, value)?;
        let (count, mut rest) = plain.split_first()?;
        let mut keys = Vec::new();
        for _ in 0..*count {
            let (before, after) = rest.split_first_chunk::<8>()?;
            let (end, after) = after.split_first_chunk::<8>()?;
            let (len, after) = after.split_first_chunk::<2>()?;
            let (key, after) = after.split_at_checked(u16::from_be_bytes(*len).into())?;
            let end = u64::from_be_bytes(*end);
            keys.push(StoredKey {
                key: Key::new(key).ok()?,
                not_before: u64::from_be_bytes(*before),
                not_after: (end != u64::MAX).then_some(end),
            });
            rest = after;
        }
        (rest.is_empty() && keys.len() <= MAX_KEYS).then_some(Self { version, keys })
    }
}

/// That the keys of an id are revoked: those of versions up to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) version: u64,
}

impl Revoked {
    pub(crate) fn seal(self, secret: &StoreSecret, marker: &Marker, id: &KeyId) -> Result<Vec<u8>, Error> {
        seal("revoked", secret, marker, id, self.version, &[])
    }

    pub(crate) fn open(secret: &StoreSecret, marker: &Marker, id: &KeyId, value: &[u8]) -> Option<Self> {
        let (version, plain) = open("revoked", secret, marker, id, value)?;
        plain.is_empty().then_some(Self { version })
    }
}

fn seal(
    kind: &'static str,
    secret: &StoreSecret,
    marker: &Marker,
    id: &KeyId,
    version: u64,
    plain: &[u8],
) -> Result<Vec<u8>, Error> {
    let place = Place { kind, store: &marker.store, id: Some(id), version };
    let sealed = secret.seal(&place, plain)?;
    Ok([&[VERSION][..], &version.to_be_bytes(), &sealed].concat())
}

fn open(
    kind: &'static str,
    secret: &StoreSecret,
    marker: &Marker,
    id: &KeyId,
    value: &[u8],
) -> Option<(u64, Zeroizing<Vec<u8>>)> {
    if value.len() > MAX_LEN || value.len() < 9 + OVERHEAD {
        return None;
    }
    let (format, rest) = value.split_first()?;
    let (version, sealed) = rest.split_first_chunk::<8>()?;
    let version = u64::from_be_bytes(*version);
    let place = Place { kind, store: &marker.store, id: Some(id), version };
    let plain = secret.open(&place, sealed)?;
    (*format == VERSION).then_some((version, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> StoreSecret {
        StoreSecret::new(&Key::new([7; 32]).unwrap()).unwrap()
    }

    #[test]
    fn values_are_opened_as_they_were_sealed() {
        let (secret, alice) = (secret(), KeyId::new("alice").unwrap());
        for form in [Form::Sealed, Form::Derived] {
            let marker = Marker::generate(form).unwrap();
            let value = marker.seal(&secret).unwrap();
            assert_eq!(Marker::open(&secret, &value).unwrap(), marker);
            for at in 0..value.len() {
                let mut changed = value.clone();
                changed[at] ^= 1;
                assert!(Marker::open(&secret, &changed).is_err());
            }
        }
        let marker = Marker::generate(Form::Sealed).unwrap();
        let key =
            |byte, not_after| StoredKey { key: Key::new([byte; 32]).unwrap(), not_before: 5, not_after };
        let keys = Keys { version: 9, keys: vec![key(1, None), key(2, Some(77))] };
        let value = keys.seal(&secret, &marker, &alice).unwrap();
        let opened = Keys::open(&secret, &marker, &alice, &value).unwrap();
        assert_eq!((opened.version, opened.keys.len()), (9, 2));
        assert_eq!(opened.keys[1].key.expose_secret(), [2; 32]);
        assert_eq!((opened.keys[0].not_after, opened.keys[1].not_after), (None, Some(77)));
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert!(Keys::open(&secret, &marker, &alice, &changed).is_none());
        }
        // A value of one kind is none of the other.
        assert!(Revoked::open(&secret, &marker, &alice, &value).is_none());
        let value = Revoked { version: 3 }.seal(&secret, &marker, &alice).unwrap();
        assert_eq!(Revoked::open(&secret, &marker, &alice, &value), Some(Revoked { version: 3 }));
        assert!(Keys::open(&secret, &marker, &alice, &value).is_none());
        let another = Marker::generate(Form::Sealed).unwrap();
        assert!(Revoked::open(&secret, &another, &alice, &value).is_none());
    }

    #[test]
    fn validity() {
        let key = StoredKey { key: Key::new([1; 32]).unwrap(), not_before: 10, not_after: Some(20) };
        assert_eq!([9, 10, 19, 20].map(|now| key.is_valid(now)), [false, true, true, false]);
        assert_eq!([9, 10, 19, 20].map(|now| key.next_change(now)), [Some(10), Some(20), Some(20), None]);
    }
}
