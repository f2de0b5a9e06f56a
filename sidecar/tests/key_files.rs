//! Key files as people have them: mistyped, from systemd and Kubernetes, and in places that block.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{Running, run, stderr, stdout};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar, program, write_line};

/// Both sides, with the arguments that they need besides the key file.
fn sides() -> Vec<(String, Command)> {
    let side = |side: &'static str, mechanism: &'static str| {
        let mut command = program();
        command.args([side, "--listen", "127.0.0.1:0", "--target", "127.0.0.1:1", "--audience", "test"]);
        command.args(["--mechanism", mechanism, "--log-format", "json"]);
        (format!("{side} {mechanism}"), command)
    };
    MECHANISMS.iter().flat_map(|mechanism| [side("server", mechanism), side("client", mechanism)]).collect()
}

/// Asserts that no part of a key is in `text`.
fn assert_no_key(text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    for key in [KEY, OTHER_KEY] {
        let digits = key.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).unwrap());
        let bytes: Vec<_> = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        for part in key.as_bytes().windows(8).chain(bytes.windows(4)) {
            let found = text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
            assert!(!found, "{}", String::from_utf8_lossy(text));
        }
    }
}

/// What cannot have been meant. The line at fault is the last one.
fn mistakes() -> Vec<String> {
    vec![
        format!("alice:{KEY}:1001\n"),
        format!("alice:{KEY}:{OTHER_KEY}\n"),
        format!("alice:{KEY}\rbob:{OTHER_KEY}\r"),
        format!("alice:{KEY}\tbob:{OTHER_KEY}\n"),
        format!("alice:{KEY} bob:{OTHER_KEY}\n"),
        format!("{KEY}:{OTHER_KEY}\n"),
        format!("{KEY}:alice\n"),
        format!(" alice:{KEY}\n"),
        format!("alice :{KEY}\n"),
        format!("alice: {KEY}\n"),
        format!("alice={KEY}\n"),
        format!("alice:0x{KEY}\n"),
        "alice:1001\n".to_owned(),
    ]
}

fn key_file(content: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    write_line(&path, content.trim_end_matches('\n'));
    (directory, path)
}

#[test]
fn mistakes_are_errors_that_name_the_line() {
    for content in mistakes() {
        let (_directory, keys) = key_file(&format!("# comment\n{content}"));
        for (name, mut command) in sides() {
            let output = run(command.arg("--key-file").arg(&keys), "");
            assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{name}: {content:?}");
            let error = stderr(&output);
            let expected = format!("error: key file {}, line 2: ", keys.display());
            assert!(
                error.starts_with(&expected) && error.lines().count() == 1,
                "{name}: {content:?}: {error}"
            );
            assert_no_key(error);
        }
    }
}

/// A key in the place of another value is not printed.
#[test]
fn rejected_values_are_not_printed() {
    let (_directory, keys) = key_file(&format!("alice:{KEY}"));
    let start = |flag: &str, value: &str| {
        let mut command = program();
        command
            .args(["client", "--listen", "127.0.0.1:0", "--target", "127.0.0.1:1", "--key-file"])
            .arg(&keys);
        if flag != "--audience" {
            command.args(["--audience", "example"]);
        }
        run(command.args([flag, value]), "")
    };
    for (flag, value) in
        [("--key-id", KEY.to_owned()), ("--key-id", format!("alice:{KEY}")), ("--audience", KEY.repeat(10))]
    {
        let output = start(flag, &value);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with(&format!("error: {flag}: ")), "{}", stderr(&output));
        assert_no_key(&output.stderr);
    }
    let output = run(program().args(["keygen", KEY]), "");
    assert!(stderr(&output).starts_with("error: the id: "), "{}", stderr(&output));
    assert_no_key(&output.stderr);
}

/// The same in a configuration file.
#[test]
fn rejected_values_of_a_file_are_not_printed() {
    let (directory, keys) = key_file(&format!("alice:{KEY}"));
    let config = directory.path().join("config.toml");
    for more in
        [format!("key-id = \"{KEY}\"\naudience = \"test\""), format!("audience = \"{}\"", KEY.repeat(10))]
    {
        let text = format!(
            "[[client]]\nname = \"a\"\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:1\"\nkey-file = \"{}\"\n{more}\n",
            keys.display()
        );
        fs::write(&config, text).unwrap();
        let output = run(program().arg("run").arg("--config").arg(&config), "");
        assert_eq!(output.status.code(), Some(1));
        assert_no_key(&output.stderr);
    }
}

/// Starts a side, changes its key file, and returns the error that it logs.
fn error_after(command: &mut Command, directory: TempDir, change: impl FnOnce(&Path)) -> String {
    let keys = directory.path().join("keys");
    command.arg("--key-file").arg(&keys).stdout(Stdio::null());
    let mut sidecar = Sidecar::spawn(command, directory, 1);
    change(&keys);
    let error = sidecar.event("keys unchanged").text("error").to_owned();
    sidecar.running.terminate();
    assert!(sidecar.running.wait().success());
    sidecar.running.rest().iter().for_each(assert_no_key);
    error
}

#[test]
fn mistake_in_a_running_program_changes_nothing() {
    for (name, mut command) in sides() {
        let (directory, _) = key_file(&format!("alice:{KEY}"));
        let change = |keys: &Path| fs::write(keys, format!("alice:{OTHER_KEY}:1001\n")).unwrap();
        let error = error_after(&mut command, directory, change);
        assert!(error.contains(", line 1: "), "{name}: {error}");
        assert_no_key(error);
    }
}

#[test]
fn permissions_of_a_running_program() {
    for (name, mut command) in sides() {
        let (directory, keys) = key_file(&format!("alice:{KEY}"));
        let change = |keys: &Path| fs::set_permissions(keys, Permissions::from_mode(0o440)).unwrap();
        let error = error_after(&mut command, directory, change);
        let keys = keys.display();
        let expected = format!(
            "key file {keys}: permissions 0440 are too open; run `chmod 600 {keys}`, or pass --allow-group-read"
        );
        assert_eq!(error, expected, "{name}");
    }
}

#[test]
fn group_readable_key_file_needs_the_flag() {
    let (_directory, path) = key_file(&format!("alice:{KEY}"));
    let set_mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let keys = path.to_str().unwrap();
    for (name, mut command) in sides() {
        command.args(["--key-file", keys]);
        for (mode, advice) in [
            // systemd's `LoadCredential`, Kubernetes' `fsGroup`.
            (0o440, ", or pass --allow-group-read"),
            (0o640, ", or pass --allow-group-read"),
            (0o660, ""),
            (0o444, ""),
            (0o644, ""),
        ] {
            set_mode(mode);
            let output = run(&mut command, "");
            let error = format!(
                "error: key file {keys}: permissions {mode:04o} are too open; run `chmod 600 {keys}`{advice}\n"
            );
            assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()), "{name}");
        }
    }
    for (name, mut command) in sides() {
        command.args(["--key-file", keys, "--allow-group-read"]);
        for mode in [0o660, 0o444] {
            set_mode(mode);
            let output = run(&mut command, "");
            let error = format!(
                "error: key file {keys}: permissions {mode:04o} are too open; run `chmod 600 {keys}`\n"
            );
            assert_eq!((output.status.code(), stderr(&output)), (Some(1), error.as_str()), "{name}");
        }
        set_mode(0o440);
        Running::start_stderr(command.stdout(Stdio::null())).line_with("\"listening\"");
    }
}

/// Creates a FIFO in a directory of its own.
fn fifo() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&fifo).status().unwrap().success());
    (directory, fifo)
}

/// Asserts that a program ends soon after SIGTERM.
fn assert_ends(name: &str, program: &mut Running) -> ExitStatus {
    program.terminate();
    let begin = Instant::now();
    let status = program.wait();
    assert!(begin.elapsed() < Duration::from_secs(5), "{name} ended after {:?}", begin.elapsed());
    status
}

/// A secret manager hands out the keys through a FIFO, once.
#[test]
fn keys_from_a_fifo() {
    for (name, mut command) in sides() {
        let (_directory, fifo) = fifo();
        let path = fifo.clone();
        let writer = thread::spawn(move || fs::write(path, format!("alice:{KEY}\n")).unwrap());
        let mut server = Running::start_stderr(command.arg("--key-file").arg(&fifo).stdout(Stdio::null()));
        // The first check of the watch runs beside the start of the service: the order of the two lines varies.
        let (mut is_listening, mut unchanged) = (false, None);
        while !is_listening || unchanged.is_none() {
            let line = server.line();
            is_listening |= line.contains("\"listening\"");
            if line.contains("\"keys unchanged\"") {
                unchanged = Some(line);
            }
        }
        writer.join().unwrap();
        let line = unchanged.unwrap();
        assert!(line.contains("a FIFO is read only once"), "{line}");
        assert!(assert_ends(&name, &mut server).success());
    }
}

#[test]
fn fifo_without_writer() {
    for (name, mut command) in sides() {
        let (_directory, fifo) = fifo();
        let mut server = Running::start_stderr(command.arg("--key-file").arg(&fifo).stdout(Stdio::null()));
        // It waits for the writer: this opens once there is a reader.
        let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        assert_eq!(assert_ends(&name, &mut server).code(), Some(0), "{name}: not by the signal itself");
    }
}

#[test]
fn key_file_that_becomes_a_fifo() {
    for (name, mut command) in sides() {
        let (directory, keys) = key_file(&format!("alice:{KEY}"));
        let (_directory, fifo) = fifo();
        command.arg("--key-file").arg(&keys).stdout(Stdio::null());
        let mut sidecar = Sidecar::spawn(&mut command, directory, 1);
        fs::rename(fifo, &keys).unwrap();
        sidecar.event("keys unchanged");
        assert!(assert_ends(&name, &mut sidecar.running).success());
    }
}
