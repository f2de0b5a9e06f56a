//! The one secret that is not in Redis: the key-encryption key, or the master key of derived keys.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use tower_challenge::{Key, KeyFile, KeyId};
use zeroize::Zeroizing;

use crate::error::Error;

/// The name of the format of values. It is part of what they are authenticated with.
const FORMAT: &[u8] = b"tower-challenge redis v1";

/// The length of the secret, in bytes.
const LEN: usize = 32;

/// The length of what sealing adds: a nonce and a tag.
pub(crate) const OVERHEAD: usize = NONCE_LEN + 16;

/// The secret of a store. Servers and whoever manages the keys have it; Redis does not.
pub struct StoreSecret {
    seal: LessSafeKey,
    master: Key,
}

struct Len32;

impl KeyType for Len32 {
    fn len(&self) -> usize {
        LEN
    }
}

impl StoreSecret {
    /// Creates a secret from 32 random bytes.
    ///
    /// # Errors
    ///
    /// Returns an error unless there are exactly 32 bytes.
    pub fn new(secret: &Key) -> Result<Self, Error> {
        let secret = secret.expose_secret();
        if secret.len() != LEN {
            return Err(Error::SecretLength(secret.len()));
        }
        let prk = Salt::new(HKDF_SHA256, FORMAT).extract(secret);
        let derive = |purpose: &[u8]| {
            let mut out = Zeroizing::new([0; LEN]);
            let filled = prk.expand(&[purpose], Len32).and_then(|okm| okm.fill(&mut *out));
            filled.unwrap_or_else(|_| unreachable!("one block"));
            out
        };
        let seal = UnboundKey::new(&AES_256_GCM, &*derive(b"seal"));
        Ok(Self {
            seal: LessSafeKey::new(seal.unwrap_or_else(|_| unreachable!("a key of 32 bytes"))),
            master: Key::new(derive(b"master"))?,
        })
    }

    /// Reads a file with 64 hexadecimal digits and a line end, which only its owner may have access to.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read, has other permissions, or another content.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::read_file(&KeyFile::new(path.as_ref()))
    }

    /// Reads a file with the checks of permissions and owner that `file` has, e.g. one that its group can read.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read).
    pub fn read_file(file: &KeyFile) -> Result<Self, Error> {
        let path = file.path();
        let content = file.read_content().map_err(Error::SecretFile)?;
        let digits = content.strip_suffix(b"\n").unwrap_or(&content);
        let key = Key::from_hex(digits).map_err(|_| Error::SecretContent(path.to_owned()))?;
        Self::new(&key)
    }

    /// Makes a file with a new secret, of mode 0600. An existing file is an error.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be made.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let secret = Key::generate()?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| Error::file(path, error))?;
        let mut line = secret.to_hex();
        line.push('\n');
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| Error::file(path, error))?;
        Self::new(&secret)
    }

    /// Returns the master key of derived keys.
    pub(crate) const fn master(&self) -> &Key {
        &self.master
    }

    /// Seals `plaintext` for one place: the fields of `place` are authenticated with it.
    pub(crate) fn seal(&self, place: &Place<'_>, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        // From the operating system. A store has far fewer than the 2^32 values that random nonces allow.
        let random = Key::generate()?;
        let nonce: [u8; NONCE_LEN] = random.expose_secret()[..NONCE_LEN].try_into().expect("32 bytes");
        let mut sealed = Zeroizing::new(plaintext.to_vec());
        let tag = self.seal.seal_in_place_separate_tag(Nonce::from(&nonce), place.aad(), &mut sealed);
        let tag = tag.unwrap_or_else(|_| unreachable!("shorter than the limit of the cipher"));
        Ok([&nonce[..], &sealed, tag.as_ref()].concat())
    }

    /// Opens what [`seal`](Self::seal) returned for the same place.
    pub(crate) fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let len = self.seal.open_in_place(Nonce::from(nonce), place.aad(), &mut opened).ok()?.len();
        opened.truncate(len);
        Some(opened)
    }
}

impl fmt::Debug for StoreSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSecret").finish_non_exhaustive()
    }
}

/// What a value is bound to, so that Redis can put it nowhere else.
pub(crate) struct Place<'a> {
    pub(crate) kind: &'static str,
    pub(crate) store: &'a [u8],
    pub(crate) id: Option<&'a KeyId>,
    pub(crate) version: u64,
}

impl Place<'_> {
    fn aad(&self) -> Aad<Vec<u8>> {
        let version = self.version.to_be_bytes();
        let id = self.id.map_or(&[][..], KeyId::as_bytes);
        let mut aad = Vec::new();
        for field in [FORMAT, self.kind.as_bytes(), self.store, id, &version] {
            aad.extend_from_slice(&u32::try_from(field.len()).expect("short fields").to_be_bytes());
            aad.extend_from_slice(field);
        }
        Aad::from(aad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_in_its_place_only() {
        let secret = StoreSecret::new(&Key::new([7; 32]).unwrap()).unwrap();
        let other = StoreSecret::new(&Key::new([8; 32]).unwrap()).unwrap();
        let (alice, bob) = (KeyId::new("alice").unwrap(), KeyId::new("bob").unwrap());
        let place = |kind, store, id, version| Place { kind, store, id: Some(id), version };
        let sealed = secret.seal(&place("keys", b"store", &alice, 3), b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        let opened = secret.open(&place("keys", b"store", &alice, 3), &sealed).unwrap();
        assert_eq!(&opened[..], b"secret");
        for wrong in [
            place("revoked", b"store", &alice, 3),
            place("keys", b"stor", &alice, 3),
            place("keys", b"store", &bob, 3),
            place("keys", b"store", &alice, 2),
        ] {
            assert!(secret.open(&wrong, &sealed).is_none());
        }
        assert!(other.open(&place("keys", b"store", &alice, 3), &sealed).is_none());
        for len in 0..sealed.len() {
            assert!(secret.open(&place("keys", b"store", &alice, 3), &sealed[..len]).is_none());
        }
    }

    #[test]
    fn files_are_made_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let made = StoreSecret::create(&path).unwrap();
        let read = StoreSecret::read(&path).unwrap();
        assert_eq!(made.master().expose_secret(), read.master().expose_secret());
        assert!(StoreSecret::create(&path).is_err(), "it exists");
        assert_eq!(std::fs::read(&path).unwrap().len(), 65);
        for content in ["", "00", &"00".repeat(31), &"00".repeat(33), &"0x".repeat(32)] {
            std::fs::write(&path, content).unwrap();
            assert!(StoreSecret::read(&path).is_err(), "{content}");
        }
    }
}
