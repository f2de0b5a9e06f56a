//! The drawings for docs.rs, which can't show a file that lies beside a text: the same, within the text.

use std::fmt::Write as _;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Rustdoc gets this in front of what refers to them, and the first definition of a link counts.
#[test]
fn the_drawings_within_the_text_are_those_in_the_files() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/img");
    let mut expected = String::new();
    for (name, title) in [
        ("stack", "the stack"),
        ("mutual", "mutual"),
        ("multiprocessing", "multiprocessing"),
        ("one_way", "one_way"),
    ] {
        let drawing = STANDARD.encode(fs::read(format!("{directory}/{name}.svg")).unwrap());
        writeln!(expected, "[drawing of {title}]: data:image/svg+xml;base64,{drawing}").unwrap();
    }
    let inline = format!("{directory}/inline.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&inline, &expected).unwrap();
    }
    assert!(
        fs::read_to_string(inline).unwrap() == expected,
        "UPDATE=1 cargo test --test drawings writes it anew"
    );
}
