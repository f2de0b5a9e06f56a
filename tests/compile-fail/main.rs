//! Each mistake gives a compiler error that says what to do.

/// The expected messages are those of one version of the compiler. `TRYBUILD=overwrite` updates them.
#[test]
#[ignore = "needs rustc 1.95, whose messages it compares"]
fn compiler_messages() {
    trybuild::TestCases::new().compile_fail("cases/*.rs");
}
