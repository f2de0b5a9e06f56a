//! Key files as people have them: mistyped, from systemd and Kubernetes, and in places that block.
#![cfg(unix)]

use std::fs::{self, Permissions};
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};

use super::{KEY, OTHER_KEY, client, key_file, path, start};
use crate::process::{Running, example, run, stderr, stdout};

/// All programs, with the arguments that they need besides the key file.
fn programs() -> Vec<(&'static str, Command)> {
    let with = |program, args: &[&str]| {
        let mut command = example(program);
        command.args(args).args(["--audience", "example"]);
        command
    };
    let listen = ["--listen", "127.0.0.1:0"];
    vec![
        ("server", with("server", &listen)),
        ("client", with("client", &[])),
        ("observe", with("example-observe", &[&listen[..], &["--metrics", "127.0.0.1:0"]].concat())),
    ]
}

/// The programs that run until a signal.
fn servers() -> Vec<(&'static str, Command)> {
    programs().into_iter().filter(|(name, _)| *name != "client").collect()
}

/// A relay that records what it passes on to the server.
fn recording_relay(target: &str) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let (target, record) = (target.to_owned(), Arc::clone(&recorded));
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut server = TcpStream::connect(&target).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to).unwrap_or_default());
            let record = Arc::clone(&record);
            thread::spawn(move || {
                let mut buf = [0; 4096];
                while let Ok(len @ 1..) = client.read(&mut buf) {
                    record.lock().unwrap().extend_from_slice(&buf[..len]);
                    server.write_all(&buf[..len]).unwrap_or_default();
                }
                server.shutdown(std::net::Shutdown::Write).unwrap_or_default();
            });
        }
    });
    (addr, recorded)
}

/// Asserts that no part of a key is in `text`.
fn assert_no_key(text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    for key in [KEY, OTHER_KEY] {
        let bytes = base16ct::mixed::decode_vec(key).unwrap();
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

#[test]
fn mistakes_are_errors_that_name_the_line() {
    for content in mistakes() {
        let keys = key_file(format!("# comment\n{content}"));
        for (name, mut command) in programs() {
            let output = run(command.args(["--key-file", path(&keys)]), "hello\n");
            assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{name}: {content:?}");
            let error = stderr(&output);
            let expected = format!("error: key file {}, line 2: ", path(&keys));
            assert!(
                error.starts_with(&expected) && error.lines().count() == 1,
                "{name}: {content:?}: {error}"
            );
            assert_no_key(error);
        }
    }
}

/// Neither on the wire nor in a log: not if the file is mistyped, not if a key is passed as something else.
#[test]
fn keys_never_become_ids() {
    let good = key_file(format!("alice:{KEY}\n"));
    for mechanism in ["mutual", "one-way", "multiprocessing"] {
        let mut command = example("server");
        command.args(["--listen", "127.0.0.1:0", "--mechanism", mechanism, "--key-file", path(&good)]);
        let (mut server, addr) = start(&mut command);
        let (relay, recorded) = recording_relay(&addr);
        let run_client = |key_file: &NamedTempFile, args: &[&str]| {
            let mut command = client(&relay);
            run(command.args(["--mechanism", mechanism, "--key-file", path(key_file)]).args(args), "hello\n")
        };
        assert!(run_client(&good, &[]).status.success());
        for content in mistakes() {
            let output = run_client(&key_file(content), &[]);
            assert_eq!(output.status.code(), Some(1));
            assert_no_key(&output.stderr);
        }
        for id in [KEY, &format!("alice:{KEY}")] {
            let output = run_client(&good, &["--key-id", id]);
            assert!(stderr(&output).starts_with("error: --key-id: "), "{}", stderr(&output));
            assert_no_key(&output.stderr);
        }
        if mechanism == "mutual" {
            let output = run_client(&good, &["--audience", &KEY.repeat(5)]);
            assert!(stderr(&output).starts_with("error: --audience: "), "{}", stderr(&output));
            assert_no_key(&output.stderr);
        } else {
            let mut command = client(&relay);
            let output = run(command.args(["--mechanism", mechanism]).env("CHALLENGE_KEY", KEY), "hello\n");
            assert!(stderr(&output).contains("handshake refused"), "{}", stderr(&output));
            assert_no_key(&output.stderr);
        }
        assert!(!recorded.lock().unwrap().is_empty());
        assert_no_key(&*recorded.lock().unwrap());
        server.terminate();
        server.rest().iter().for_each(assert_no_key);
    }
}

/// Changes the key file of a running program, and returns what it prints afterwards.
fn output_after(command: &mut Command, keys: &NamedTempFile, change: impl FnOnce()) -> String {
    command.args(["--key-file", path(keys)]);
    let (mut running, _, (stdout, stderr)) = Running::start_unread(command, "listening on ");
    // The watch has read the file, and checks it again each second.
    thread::sleep(Duration::from_millis(300));
    change();
    thread::sleep(Duration::from_millis(1_500));
    running.terminate();
    assert!(running.wait().success());
    let mut output = String::new();
    for mut pipe in [Box::new(stdout) as Box<dyn Read>, Box::new(stderr)] {
        pipe.read_to_string(&mut output).unwrap();
    }
    output
}

/// The programs that read the file again when it changes.
fn watching() -> Vec<(&'static str, Command)> {
    programs().into_iter().filter(|(name, _)| !["client", "observe"].contains(name)).collect()
}

#[test]
fn mistake_in_a_running_program_changes_nothing() {
    for (name, mut command) in watching() {
        let keys = key_file(format!("alice:{KEY}\n"));
        let change = || fs::write(keys.path(), format!("alice:{OTHER_KEY}:1001\n")).unwrap();
        let output = output_after(&mut command, &keys, change);
        assert!(
            output.contains(", line 1: ") && output.contains("; the keys are unchanged\n"),
            "{name}: {output}"
        );
        assert_no_key(output);
    }
}

#[test]
fn permissions_of_a_running_program() {
    for (name, mut command) in watching() {
        let keys = key_file(format!("alice:{KEY}\n"));
        let change = || keys.as_file().set_permissions(Permissions::from_mode(0o440)).unwrap();
        let output = output_after(&mut command, &keys, change);
        let advice = format!(
            "permissions 0440 are too open; run `chmod 600 {}`, or pass --allow-group-read; the keys are unchanged\n",
            path(&keys)
        );
        assert!(output.contains(&advice), "{name}: {output}");
    }
}

#[test]
fn group_readable_key_file_needs_the_flag() {
    let keys = key_file(format!("alice:{KEY}\n"));
    let set_mode = |mode| keys.as_file().set_permissions(Permissions::from_mode(mode)).unwrap();
    let keys = path(&keys);
    for (name, mut command) in programs() {
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
    for (name, mut command) in programs() {
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
        if name == "client" {
            let output = run(command.args(["--connect", "127.0.0.1:1"]), "");
            assert!(stderr(&output).contains("cannot connect to 127.0.0.1:1"), "{}", stderr(&output));
        } else {
            Running::start(&mut command).line_with("listening on ");
        }
    }
}

/// Creates a FIFO in a directory of its own.
fn fifo() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("keys");
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
    for (name, mut command) in servers() {
        let (_directory, fifo) = fifo();
        let path = fifo.clone();
        let writer = thread::spawn(move || fs::write(path, format!("alice:{KEY}\n")).unwrap());
        let mut server = Running::start(command.arg("--key-file").arg(&fifo));
        server.line_with("listening on ");
        writer.join().unwrap();
        // A check of the file falls into this time.
        thread::sleep(Duration::from_millis(1_500));
        assert!(assert_ends(name, &mut server).success());
    }
}

#[test]
fn fifo_without_writer() {
    for (name, mut command) in servers() {
        let (_directory, fifo) = fifo();
        let mut server = Running::start(command.arg("--key-file").arg(&fifo));
        thread::sleep(Duration::from_millis(500));
        assert_eq!(assert_ends(name, &mut server).code(), Some(1), "{name}: not by the signal itself");
    }
}

#[test]
fn key_file_that_becomes_a_fifo() {
    for (name, mut command) in servers() {
        let keys = key_file(format!("alice:{KEY}\n"));
        let (_directory, fifo) = fifo();
        let mut server = Running::start(command.args(["--key-file", path(&keys)]));
        server.line_with("listening on ");
        thread::sleep(Duration::from_millis(300));
        fs::rename(fifo, keys.path()).unwrap();
        thread::sleep(Duration::from_millis(1_500));
        assert!(assert_ends(name, &mut server).success());
    }
}
