//! The drawings for docs.rs, which can't show a file that lies beside the README: the same, within the text.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Rustdoc gets this in front of the README, and the first definition of a link counts.
#[test]
fn the_drawing_within_the_text_is_the_one_in_the_file() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/img");
    let drawing = fs::read(format!("{directory}/stack.svg")).unwrap();
    let expected = format!("[stack]: data:image/svg+xml;base64,{}\n", STANDARD.encode(drawing));
    let inline = format!("{directory}/stack.inline.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&inline, &expected).unwrap();
    }
    assert!(
        fs::read_to_string(inline).unwrap() == expected,
        "UPDATE=1 cargo test --test drawings writes it anew"
    );
}
