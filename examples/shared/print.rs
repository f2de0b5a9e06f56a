//! `println!` and `eprintln!` that ignore errors. Those of the standard library panic if the reader of the output is
//! gone, as with `| head -1`.
#![allow(unused_macros, reason = "most examples print to the standard output only")]

macro_rules! println {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

macro_rules! eprintln {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}
