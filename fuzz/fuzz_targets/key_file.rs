//! Whatever the content of a key file, what loads is printed back as the same entries, no id contains 32 hexadecimal
//! digits of a key in the same file, and no error contains a part of a key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_challenge::{KeyEntry, KeyFile, KeyId};

fuzz_target!(|data: &[u8]| {
    let file = KeyFile::new("keys");
    let entries = match file.parse(data) {
        Ok(entries) => entries,
        Err(error) => {
            let message = error.to_string();
            return assert!(hex_runs(message.as_bytes()).all(|run| run.len() < 8), "{message}");
        }
    };
    let lines = print(&entries);
    let again = file.parse(lines.join("\n")).unwrap();
    assert_eq!(print(&again), lines);
    let keys: Vec<_> = entries.iter().map(|entry| entry.key().to_hex()).collect();
    for entry in &entries {
        let id = entry.id().to_string().to_ascii_lowercase();
        assert_eq!(KeyId::from_text(&entry.id().to_string()).unwrap(), *entry.id());
        for digits in id.as_bytes().windows(32) {
            assert!(!keys.iter().any(|key| key.as_bytes().windows(32).any(|part| part == digits)));
        }
    }
});

fn print(entries: &[KeyEntry]) -> Vec<String> {
    entries.iter().map(|entry| format!("{}:{}", entry.id(), *entry.key().to_hex())).collect()
}

fn hex_runs(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| !byte.is_ascii_hexdigit())
}
