//! The computations of both sides, from a key and the fields of the messages. The module `mutual` has the formulas.

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::encode::{Nonce, PROTOCOL, Tag, len_prefix};
use super::exporter::Exporter;
use super::key::PreparedKey;
use crate::mechanism::{first_match, wiping_stack};
use crate::transport::ChannelBinding;

/// The hash of all fields that both sides agree on.
pub(super) struct Transcript([u8; 32]);

impl Transcript {
    pub(super) fn new(
        server_nonce: &Nonce,
        client_nonce: &Nonce,
        key_id: &[u8],
        audience: &[u8],
        binding: Option<&ChannelBinding>,
    ) -> Self {
        let (kind, data) = binding.map_or((&b""[..], &b""[..]), |b| (b.kind().as_bytes(), b.data()));
        let mut hash = Sha256::new();
        for field in [PROTOCOL, server_nonce, client_nonce, key_id, audience, kind, data] {
            hash.update(len_prefix(field));
            hash.update(field);
        }
        Self(hash.finalize().into())
    }

    pub(super) fn client_tag(&self, key: &PreparedKey) -> Tag {
        wiping_stack(|| self.client_mac(key).finalize().into_bytes().into())
    }

    /// Returns the position of the first key under which the client's tag is valid. Computes a MAC for each of the
    /// keys, and verifies in constant time.
    pub(super) fn first_match<'k>(
        &self,
        keys: impl Iterator<Item = &'k PreparedKey>,
        tag: &Tag,
    ) -> Option<usize> {
        wiping_stack(|| first_match(keys.map(|key| self.client_mac(key).verify_slice(tag).is_ok())))
    }

    pub(super) fn server_tag(&self, key: &PreparedKey, client_tag: &Tag) -> Tag {
        wiping_stack(|| self.server_mac(key, client_tag).finalize().into_bytes().into())
    }

    /// Verifies the server's tag in constant time.
    pub(super) fn verify_server_tag(&self, key: &PreparedKey, client_tag: &Tag, tag: &Tag) -> bool {
        wiping_stack(|| self.server_mac(key, client_tag).verify_slice(tag).is_ok())
    }

    pub(super) fn exporter(&self, key: &PreparedKey) -> Exporter {
        Exporter::new(key.exporter(), &self.0)
    }

    fn client_mac(&self, key: &PreparedKey) -> Hmac<Sha256> {
        key.client().clone().chain_update(self.0)
    }

    fn server_mac(&self, key: &PreparedKey, client_tag: &Tag) -> Hmac<Sha256> {
        key.server().clone().chain_update(self.0).chain_update(client_tag)
    }
}
