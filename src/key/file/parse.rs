use std::collections::HashSet;

use super::KeyFileErrorKind;
use crate::key::id::is_blank;
use crate::key::{Key, KeyEntry, KeyError, KeyId};

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// Parses the content of a key file. An error has the number of the line, unless the file as a whole is at fault.
pub(super) fn parse(content: &[u8]) -> Result<Vec<KeyEntry>, (Option<usize>, KeyFileErrorKind)> {
    if let Some(found) = foreign_encoding(content) {
        return Err((None, KeyFileErrorKind::Encoding { found }));
    }
    let content = content.strip_prefix(UTF8_BOM).unwrap_or(content);
    let mut entries = Vec::new();
    for (index, line) in content.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let entry = parse_line(line).map_err(|kind| (Some(index + 1), kind))?;
        entries.extend(entry);
    }
    remove_repetitions(&mut entries);
    if entries.is_empty() { Err((None, KeyFileErrorKind::Key(KeyError::NoKeys))) } else { Ok(entries) }
}

/// Returns the encoding of text that begins with the byte order mark of UTF-16 or UTF-32.
fn foreign_encoding(content: &[u8]) -> Option<&'static str> {
    match content {
        // The mark of UTF-32 in little-endian order begins with that of UTF-16.
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// Parses one line, with its end. Returns `None` for a comment or a blank line.
fn parse_line(line: &[u8]) -> Result<Option<KeyEntry>, KeyFileErrorKind> {
    let line = line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n")).unwrap_or(line);
    // These are errors in comments, too: the comment may contain an entry that would be missing.
    if line.contains(&b'\0') {
        return Err(KeyFileErrorKind::Nul);
    }
    if line.contains(&b'\r') {
        return Err(KeyFileErrorKind::CarriageReturn);
    }
    if line.starts_with(b"#") || line.iter().all(|byte| b" \t".contains(byte)) {
        return Ok(None);
    }
    let line = std::str::from_utf8(line).map_err(|_| KeyFileErrorKind::NotUtf8)?;
    if line.contains(is_blank) {
        return Err(KeyFileErrorKind::WhiteSpace);
    }
    if line.contains(char::is_control) {
        return Err(KeyFileErrorKind::ControlCharacter);
    }
    let (id, digits) = line.split_once(':').ok_or(KeyFileErrorKind::NoColon)?;
    if digits.contains(':') {
        return Err(KeyFileErrorKind::TooManyColons);
    }
    let entry = KeyId::from_text(id)
        .and_then(|id| KeyEntry::new(id, Key::from_hex(digits)?.of_input_len()?))
        .map_err(KeyFileErrorKind::Key)?;
    Ok(Some(entry))
}

/// Removes entries that are there more than once, and keeps the first of them.
fn remove_repetitions(entries: &mut Vec<KeyEntry>) {
    let mut seen = HashSet::with_capacity(entries.len());
    let mut are_new = Vec::with_capacity(entries.len());
    for entry in &*entries {
        are_new.push(seen.insert((entry.id().as_bytes(), entry.key().expose_secret())));
    }
    let mut are_new = are_new.into_iter();
    entries.retain(|_| are_new.next().unwrap_or(true));
}
