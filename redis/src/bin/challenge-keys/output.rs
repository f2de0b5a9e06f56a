//! Results on the standard output, and what was done on the standard error.

use std::io::{self, Write as _};

use serde_json::Value;

/// Says what was done.
pub(crate) fn note(text: &str) {
    // The reader may be gone, and what was done is done.
    let _ = writeln!(io::stderr(), "{text}");
}

#[derive(Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Says what was done, and prints it for machines.
    pub(crate) fn done(self, text: &str, value: &Value) {
        note(text);
        if self.json {
            let _ = writeln!(io::stdout(), "{value}");
        }
    }

    /// Prints a row of the result.
    pub(crate) fn row(self, text: &str, value: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json { writeln!(out, "{value}") } else { writeln!(out, "{text}") }
    }
}
