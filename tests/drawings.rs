//! docs.rs cannot show image files, so `docs/img/inline.md` contains the drawings as data URLs.

use std::fmt::Write as _;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Rustdoc reads this file before the text that refers to the drawings, and the first definition of a link counts.
#[test]
fn inline_drawings_match_the_svg_files() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/img");
    let mut expected = String::new();
    for (name, title) in [
        ("stack", "the stack"),
        ("mutual", "mutual"),
        ("noise", "noise"),
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
        "docs/img/inline.md is out of date; update it with `UPDATE=1 cargo test --test integration drawings`"
    );
}
