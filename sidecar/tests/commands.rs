//! The commands that end by themselves, and the errors of the command line.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::process::{run, stderr, stdout};
use crate::support::service::{Service, echo, open};
use crate::support::sidecar::{KEY, Sidecar, program, write_key};

fn output(args: &[&str]) -> Output {
    run(program().args(args), "")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The arguments of a side that is complete.
fn side<'a>(side: &'a str, listen: &'a str, target: &'a str, key_file: &'a Path) -> Vec<&'a str> {
    let key_file = key_file.to_str().unwrap();
    vec![side, "--listen", listen, "--target", target, "--audience", "test", "--key-file", key_file]
}

#[test]
fn version_and_help() {
    let version = output(&["--version"]);
    assert_eq!(stdout(&version), format!("challenge-proxy {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(version.status.code(), Some(0));
    for (args, parts) in [
        (
            &["--help"][..],
            &["challenge-proxy server", "challenge-proxy client", "keygen", "Exit codes: 0 "][..],
        ),
        (&["server", "--help"], &["--proxy-protocol-from", "--revoked-grace", "--admin", "Example:"]),
        (&["client", "--help"], &["--key-id", "--listen-mode", "Example:"]),
        (&["run", "--help"], &["--config", "[[server]]", "SIGHUP"]),
        (&["check", "--help"], &["--config", "server", "client"]),
    ] {
        let help = output(args);
        assert_eq!(help.status.code(), Some(0));
        assert!(parts.iter().all(|part| stdout(&help).contains(part)), "{args:?}: {}", stdout(&help));
    }
}

#[test]
fn wrong_command_lines() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    let complete = side("server", "127.0.0.1:0", "127.0.0.1:1", &keys);
    for args in
        [&[][..], &["serve"], &["server"], &["run"], &["check"], &["completions"], &["completions", "cmd"]]
    {
        assert_eq!(output(args).status.code(), Some(2), "{args:?}");
    }
    for (flag, value) in [
        ("--timeout", "soon"),
        ("--timeout", "-1"),
        ("--idle-timeout", "nan"),
        ("--listen-mode", "999"),
        ("--listen-mode", "01777"),
        ("--mechanism", "tls"),
        ("--max-sessions", "0"),
        ("--max-pending", "many"),
        ("--exempt", "10.0.0.0/33"),
        ("--exempt", "localhost"),
        ("--proxy-protocol-from", "balancer"),
        ("--send-proxy-protocol", "v3"),
        ("--log-level", "info,x=loud"),
        ("--log-format", "xml"),
        ("--admin", "9464"),
        ("--keepalive", "1e30"),
    ] {
        let argument = format!("{flag}={value}");
        let output = output(&[&complete[..], &[&argument]].concat());
        assert_eq!(output.status.code(), Some(2), "{flag} {value}");
        let error = stderr(&output);
        assert!(error.starts_with(&format!("error: invalid value '{value}' for '{flag} <")), "{error}");
    }
}

#[test]
fn invalid_addresses_name_the_flag() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    let expected = "expected HOST:PORT, such as 127.0.0.1:6379 or [::1]:6379, the path of a Unix socket, such as \
                    /run/redis.sock, or @NAME for an abstract one";
    // What a flag cannot mean is an error at the start, and not one of each session.
    for (value, problem) in [
        ("localhost", "the port is missing"),
        (":6379", "the host is missing"),
        ("localhost:redis", "the port is not a number from 0 to 65535"),
        ("localhost:65536", "the port is not a number from 0 to 65535"),
        ("run/redis.sock", "a relative path or a URL is not an address"),
        ("unix:redis.sock/", "a relative path or a URL is not an address"),
        ("redis://localhost:6379", "a relative path or a URL is not an address"),
        ("::1:6379", "an IPv6 address must be in brackets"),
        ("[localhost]:6379", "there is no IPv6 address in the brackets"),
        ("@", "the name is missing"),
    ] {
        for (flag, listen, target) in [("--listen", value, "127.0.0.1:1"), ("--target", "127.0.0.1:0", value)]
        {
            let output = output(&side("server", listen, target, &keys));
            assert_eq!(output.status.code(), Some(2));
            let error = format!("error: invalid value '{value}' for '{flag} <ADDR>': {problem}; {expected}");
            assert!(stderr(&output).starts_with(&error), "{}", stderr(&output));
        }
    }
    let zero = output(&side("server", "127.0.0.1:0", "localhost:0", &keys));
    let error =
        "error: invalid value 'localhost:0' for '--target <ADDR>': port 0 is not a port to connect to\n";
    assert!(stderr(&zero).starts_with(error), "{}", stderr(&zero));
}

#[test]
fn address_in_use_names_the_flag() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = used.local_addr().unwrap().to_string();
    let cause = TcpListener::bind(&addr).unwrap_err();
    for (flag, args) in [
        ("--listen", side("server", &addr, "127.0.0.1:1", &keys)),
        ("--listen", side("client", &addr, "127.0.0.1:1", &keys)),
        ("--admin", [&side("server", "127.0.0.1:0", "127.0.0.1:1", &keys)[..], &["--admin", &addr]].concat()),
    ] {
        let output = output(&args);
        assert_eq!(output.status.code(), Some(1));
        let error = format!("error: {flag} {addr}: {cause}\n");
        assert!(stderr(&output).ends_with(&error), "{}", stderr(&output));
    }
}

/// The keys of two calls work for a pair.
#[test]
fn keygen_appends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let append = |id: &str| output(&["keygen", id, "--append", path.to_str().unwrap()]);
    let first = append("web1");
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(stdout(&first), "", "the key is not printed");
    assert_eq!(stderr(&first), format!("a key with the id web1 was appended to {}\n", path.display()));
    assert_eq!(mode(&path), 0o600);
    // An editor has removed the last line end.
    let content = fs::read_to_string(&path).unwrap();
    fs::write(&path, content.trim_end()).unwrap();
    assert_eq!(append("web2").status.code(), Some(0));
    let lines: Vec<_> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    let [web1, web2] = &lines[..] else { panic!("{lines:?}") };
    for (line, id) in [(web1, "web1"), (web2, "web2")] {
        let (line_id, key) = line.split_once(':').unwrap();
        assert_eq!((line_id, key.len()), (id, 64));
        assert!(key.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    assert_ne!(web1[4..], web2[4..]);

    let service = Service::start();
    let [key_1, key_2] = [web1, web2].map(|line| line.split_once(':').unwrap().1);
    let server = Sidecar::server(&service.addr, &format!("{key_1}\nbob:{key_2}"), &[]);
    let client = Sidecar::client(&server.addr, key_1, &[]);
    echo(&mut open(&client.addr), b"hello");
}

#[test]
fn keygen_prints() {
    for (args, id) in [(&["keygen"][..], "default"), (&["keygen", "web 1"], "")] {
        let keygen = output(args);
        if id.is_empty() {
            assert_eq!(keygen.status.code(), Some(1), "{}", stdout(&keygen));
            assert!(stderr(&keygen).starts_with("error: the id: "), "{}", stderr(&keygen));
            continue;
        }
        let (printed, key) = stdout(&keygen).trim_end().split_once(':').unwrap();
        assert_eq!((printed, key.len(), keygen.status.code()), (id, 64, Some(0)));
        assert_ne!(stdout(&output(args)), stdout(&keygen));
    }
    // A full disk, for example.
    let full = Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let status = program().arg("keygen").stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn keygen_refuses_a_broken_or_too_open_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    for (content, permissions, part) in [
        (format!("alice:{KEY}:1001\n"), 0o600, ", line 1: "),
        (format!("alice:{KEY}\nweb1:{KEY}"), 0o644, "permissions 0644 are too open"),
    ] {
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(permissions)).unwrap();
        let refused = output(&["keygen", "web1", "--append", path.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(1));
        let error = stderr(&refused);
        assert!(error.starts_with(&format!("error: key file {}", path.display())), "{error}");
        assert!(error.contains(part) && !error.contains(KEY), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content, "unchanged");
    }
    let missing = directory.path().join("missing/keys");
    let refused = output(&["keygen", "--append", missing.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let error = format!("error: key file {}: No such file or directory (os error 2)\n", missing.display());
    assert_eq!(stderr(&refused), error);
}

/// Several keys of one id are how a key is rotated.
#[test]
fn keygen_appends_another_key_of_an_id() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    for _ in 0..2 {
        assert!(output(&["keygen", "alice", "--append", path.to_str().unwrap()]).status.success());
    }
    let content = fs::read_to_string(&path).unwrap();
    let keys: Vec<_> = content.lines().map(|line| line.strip_prefix("alice:").unwrap()).collect();
    assert_eq!(keys.len(), 2);
    let service = Service::start();
    let server = Sidecar::server(&service.addr, &format!("{}\nalice:{}", keys[0], keys[1]), &[]);
    for key in keys {
        let client = Sidecar::client(&server.addr, key, &[]);
        echo(&mut open(&client.addr), b"hello");
    }
}

#[test]
fn check_of_flags() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    let check = |args: &[&str]| output(&[&["check"], args].concat());
    // The addresses are neither bound nor connected to.
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let used = used.local_addr().unwrap().to_string();
    for name in ["server", "client"] {
        let good = check(&side(name, &used, "127.0.0.1:1", &keys));
        assert_eq!((good.status.code(), stdout(&good), stderr(&good)), (Some(0), "ok: test\n", ""));

        let missing = directory.path().join("missing");
        let bad = check(&side(name, "name.invalid:80", "other.invalid:80", &missing));
        assert_eq!((bad.status.code(), stdout(&bad)), (Some(1), ""));
        // All problems at once, each in a line.
        let lines: Vec<_> = stderr(&bad).lines().collect();
        let starts = [
            format!("error: test: key file {}: ", missing.display()),
            "error: test: --listen name.invalid:80: ".to_owned(),
            "error: test: --target other.invalid:80: ".to_owned(),
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:?}");
        assert!(starts.iter().zip(&lines).all(|(start, line)| line.starts_with(start)), "{lines:?}");
    }
    // The word `check` in front of the command line of a service is enough.
    let process =
        ["--admin", "127.0.0.1:0", "--log-level", "warn", "--log-format", "json", "--shutdown-timeout", "5"];
    let good = check(&[&side("server", &used, "127.0.0.1:1", &keys)[..], &process].concat());
    assert_eq!((good.status.code(), stdout(&good), stderr(&good)), (Some(0), "ok: test\n", ""));
    let unix = check(&side("client", "/nonexistent/socket", "/run/any.sock", &keys));
    assert_eq!(unix.status.code(), Some(1));
    assert_eq!(stderr(&unix), "error: test: --listen /nonexistent/socket: the directory does not exist\n");
    let systemd = check(&side("client", "systemd:web", "@any", &keys));
    assert_eq!((systemd.status.code(), stdout(&systemd)), (Some(0), "ok: test\n"));
}

#[test]
fn check_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    let path = directory.path().join("config.toml");
    let check = |text: &str| {
        fs::write(&path, text.replace("KEYS", keys.to_str().unwrap())).unwrap();
        output(&["check", "--config", path.to_str().unwrap()])
    };
    let good = "admin = \"127.0.0.1:0\"\n\
                [[server]]\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:1\"\nkey-file = \"KEYS\"\naudience = \"a\"\n\
                [[client]]\nlisten = \"@near\"\ntarget = \"@far\"\nkey-file = \"KEYS\"\naudience = \"b\"\n";
    let checked = check(good);
    assert_eq!((checked.status.code(), stdout(&checked), stderr(&checked)), (Some(0), "ok: a, b\n", ""));

    let file = format!("error: {}: ", path.display());
    for (text, starts) in [
        (good.replace("127.0.0.1:1\"", "localhost\""), vec![format!("{file}[[server]] \"a\": ")]),
        (good.replace("\"b\"", "\"a\""), vec![format!("{file}two services are named \"a\"")]),
        (good.replace("[[client]]", "[client]"), vec![format!("{file}`client` must be an array of tables")]),
        (good.replace("@far\"", "far.invalid:1\""), vec!["error: b: --target far.invalid:1: ".to_owned()]),
        (
            good.replace("@far\"", "@far\"\nkey-id = \"bob\"")
                .replace("127.0.0.1:0\"\n[[", "no.invalid:1\"\n[["),
            vec!["error: --admin no.invalid:1: ".to_owned(), "error: b: key file ".to_owned()],
        ),
    ] {
        let checked = check(&text);
        assert_eq!((checked.status.code(), stdout(&checked)), (Some(1), ""), "{text}");
        let lines: Vec<_> = stderr(&checked).lines().collect();
        assert_eq!(lines.len(), starts.len(), "{lines:?}");
        assert!(starts.iter().zip(&lines).all(|(start, line)| line.starts_with(start)), "{lines:?}");
    }
    // Two services cannot listen on the same address.
    let checked = check(&good.replace("127.0.0.1:0\"\ntarget", "@near\"\ntarget"));
    assert_eq!(checked.status.code(), Some(1), "{}", stdout(&checked));
    assert!(stderr(&checked).contains("@near"), "{}", stderr(&checked));
}

#[test]
fn completions() {
    let bash = output(&["completions", "bash"]);
    assert_eq!(bash.status.code(), Some(0));
    let script = stdout(&bash);
    // The shell itself completes a flag.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("completions");
    fs::write(&path, script).unwrap();
    let ask = "source \"$0\"; COMP_WORDS=(challenge-proxy server --send); COMP_CWORD=2; \
               function=$(complete -p challenge-proxy | grep -o '[-]F [^ ]*' | cut -c 4-); \
               $function challenge-proxy --send server; echo \"${COMPREPLY[@]}\"";
    let asked = run(Command::new("bash").args(["-c", ask]).arg(&path), "");
    assert_eq!(stdout(&asked), "--send-proxy-protocol\n", "{}", stderr(&asked));
    for shell in ["zsh", "fish"] {
        let completions = output(&["completions", shell]);
        assert!(completions.status.success() && stdout(&completions).contains("send-proxy-protocol"));
    }
}
