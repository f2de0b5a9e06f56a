//! The names of keys in Redis.
//!
//! | name | value |
//! |---|---|
//! | `PREFIX:marker` | says that the store was initialized, and with which secret |
//! | `PREFIX:key:ID` | the keys of an id, sealed |
//! | `PREFIX:revoked:ID` | that keys of an id up to a version are revoked, sealed |
//! | `PREFIX:servers` | what each server has seen: a hash |
//! | `PREFIX:penalties` | a channel |
//!
//! The prefix is in braces by default, so that Redis Cluster keeps all of them in one place.

use tower_challenge::KeyId;

/// The prefix of the names, unless another one is set.
pub(crate) const DEFAULT_PREFIX: &str = "{tower-challenge}";

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    prefix: String,
}

/// The value that a name belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    Marker,
    Keys(KeyId),
    Revoked(KeyId),
}

impl Layout {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    pub(crate) fn marker(&self) -> Vec<u8> {
        format!("{}:marker", self.prefix).into_bytes()
    }

    pub(crate) fn servers(&self) -> Vec<u8> {
        format!("{}:servers", self.prefix).into_bytes()
    }

    pub(crate) fn penalties(&self) -> String {
        format!("{}:penalties", self.prefix)
    }

    pub(crate) fn keys_prefix(&self) -> String {
        format!("{}:key:", self.prefix)
    }

    pub(crate) fn revoked_prefix(&self) -> String {
        format!("{}:revoked:", self.prefix)
    }

    pub(crate) fn of(&self, name: &Name) -> Vec<u8> {
        match name {
            Name::Marker => self.marker(),
            Name::Keys(id) => [self.keys_prefix().as_bytes(), id.as_bytes()].concat(),
            Name::Revoked(id) => [self.revoked_prefix().as_bytes(), id.as_bytes()].concat(),
        }
    }

    /// Returns what a name in Redis belongs to. `None` for one that is not of this store.
    pub(crate) fn parse(&self, name: &[u8]) -> Option<Name> {
        if name == self.marker() {
            return Some(Name::Marker);
        }
        let id = |id: &[u8]| KeyId::new(id).ok();
        if let Some(rest) = name.strip_prefix(self.keys_prefix().as_bytes()) {
            return id(rest).map(Name::Keys);
        }
        name.strip_prefix(self.revoked_prefix().as_bytes()).and_then(id).map(Name::Revoked)
    }
}

/// Escapes a prefix for the patterns of `SCAN`.
pub(crate) fn pattern(prefix: &str) -> String {
    let mut pattern = String::new();
    for char in prefix.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern + "*"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        let layout = Layout::new("p");
        let id = KeyId::new("a:b").unwrap();
        for name in [Name::Marker, Name::Keys(id.clone()), Name::Revoked(id)] {
            assert_eq!(layout.parse(&layout.of(&name)), Some(name));
        }
        for other in [&b"p:key:"[..], b"p:servers", b"q:key:a", b"p:marker2", b""] {
            assert_eq!(layout.parse(other), None);
        }
        assert_eq!(pattern("{a*}:"), "{a\\*}:*");
    }
}
