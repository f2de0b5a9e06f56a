use std::fmt::{self, Write as _};

/// A key id as a peer claimed it, in a form that is safe to log.
///
/// The peer chooses the bytes, so they may be anything: control characters, or a key that was pasted into the wrong
/// place. `Display` therefore escapes what is not printable, replaces each run of 16 or more hexadecimal digits by its
/// length, and prints at most 64 characters. Use it in logs, and never as a metric label: a peer could create as many
/// labels as it likes.
///
/// ```
/// use tower_challenge::ClaimedKeyId;
///
/// assert_eq!(ClaimedKeyId::new(b"alice").to_string(), "alice");
/// assert_eq!(ClaimedKeyId::new(b"a\x1b[2J").to_string(), "a\\u{1b}[2J");
/// assert_eq!(
///     ClaimedKeyId::new(b"alice:00112233445566778899aabbccddeeff").to_string(),
///     "alice:[32 hex digits]",
/// );
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClaimedKeyId {
    // A prefix of the id, so that it can be kept during a handshake without an allocation.
    prefix: [u8; Self::MAX_LEN],
    len: u8,
    is_cut: bool,
}

impl ClaimedKeyId {
    /// How many bytes are kept, and how many characters are printed.
    const MAX_LEN: usize = 64;

    /// The shortest run of hexadecimal digits that is not printed: 64 bits of a key.
    const MIN_HEX_RUN: usize = 16;

    /// Keeps what may be printed of `id`.
    #[must_use]
    pub fn new(id: &[u8]) -> Self {
        let mut end = id.len().min(Self::MAX_LEN);
        let is_cut = end < id.len();
        if is_cut {
            // A run that goes on behind the cut must not pass for a short one.
            let start = end - hex_run(id[..end].iter().rev());
            if hex_run(id[start..].iter()) >= Self::MIN_HEX_RUN {
                end = start;
            }
        }
        let mut prefix = [0; Self::MAX_LEN];
        prefix[..end].copy_from_slice(&id[..end]);
        let len = u8::try_from(end).unwrap_or_else(|_| unreachable!("at most 64"));
        Self { prefix, len, is_cut }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.prefix[..usize::from(self.len)]
    }
}

/// How many hexadecimal digits come first.
fn hex_run<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes.take_while(|byte| byte.is_ascii_hexdigit()).count()
}

impl fmt::Display for ClaimedKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::with_capacity(2 * Self::MAX_LEN);
        let mut rest = self.as_bytes();
        while !rest.is_empty() {
            let run = hex_run(rest.iter());
            let (part, after) = if run >= Self::MIN_HEX_RUN {
                write!(line, "[{run} hex digits]")?;
                rest.split_at(run)
            } else {
                // Up to the next run, and at least one byte.
                let other = rest[run..].iter().take_while(|byte| !byte.is_ascii_hexdigit()).count();
                let (part, after) = rest.split_at(run + other);
                for chunk in part.utf8_chunks() {
                    write!(line, "{}{}", chunk.valid().escape_debug(), chunk.invalid().escape_ascii())?;
                }
                (part, after)
            };
            debug_assert!(!part.is_empty());
            rest = after;
        }
        let mut chars = line.chars();
        chars.by_ref().take(Self::MAX_LEN).try_for_each(|c| f.write_char(c))?;
        if self.is_cut || chars.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

impl fmt::Debug for ClaimedKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimedKeyId(\"{self}\")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(id: &[u8]) -> String {
        ClaimedKeyId::new(id).to_string()
    }

    #[test]
    fn printable_ids_are_unchanged() {
        for id in ["alice", "设备-1", "host:8888", "c0ffee", "0123456789abcde", &"x".repeat(64)] {
            assert_eq!(shown(id.as_bytes()), id);
        }
    }

    #[test]
    fn long_hex_runs_are_elided_wherever_they_are() {
        let key = "0123456789abcdefABCDEF0123456789";
        assert_eq!(shown(key.as_bytes()), "[32 hex digits]");
        assert_eq!(shown(format!("alice:{key}:1001").as_bytes()), "alice:[32 hex digits]:1001");
        assert_eq!(shown(b"0123456789abcdef"), "[16 hex digits]");
        // Runs that the cut divides, at every place.
        for before in 0..=255 - key.len() {
            let text = shown(format!("{}{key}", "-".repeat(before)).as_bytes());
            assert!(!text.contains("0123456789abcdef"), "{text}");
            let digits = text.replace("hex digits", "").matches(|c: char| c.is_ascii_hexdigit()).count();
            assert!(digits <= 2, "{text}");
        }
    }

    #[test]
    fn escaped_and_cut() {
        assert_eq!(shown(b"a\nb"), "a\\nb");
        assert_eq!(shown(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(shown(&[b'x'; 65]), format!("{}...", "x".repeat(64)));
        assert_eq!(shown(&[0x1b; 255]).chars().count(), 64 + 3);
        assert_eq!(shown("设".repeat(85).as_bytes()).chars().filter(|&c| c == '设').count(), 21);
    }
}
