//! Key files: content that its author cannot have meant is an error, as are paths that do not refer to a secure file.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tower_challenge::key::{KeyFileError, KeyFileErrorKind, ReloadError};
use tower_challenge::{Key, KeyEntry, KeyError, KeyFile, KeyId};

use KeyFileErrorKind as Kind;

/// 64 hexadecimal digits, the format of most keys.
const KEY: &str = "5f0c63a8d1f24f5e9b6f1c0f2f7a9e3d00112233445566778899aabbccddeeff";

fn parse(content: impl AsRef<[u8]>) -> Result<Vec<KeyEntry>, KeyFileError> {
    KeyFile::new("keys").parse(content)
}

/// Prints an entry as a line of a file.
fn line(entry: &KeyEntry) -> String {
    format!("{}:{}", entry.id(), *entry.key().to_hex())
}

fn lines(content: impl AsRef<[u8]>) -> Vec<String> {
    parse(content).unwrap().iter().map(line).collect()
}

/// Asserts that the content is refused with this kind of error in this line, and that the error contains no part of a
/// key.
macro_rules! assert_refused {
    ($content:expr, $line:expr, $kind:pat $(if $guard:expr)?) => {{
        let content = $content;
        let error = parse(&content).expect_err("the content is refused");
        assert!(matches!(error.kind(), $kind $(if $guard)?), "{error}");
        assert_eq!(error.line(), $line, "{error}");
        assert_no_hex(&error);
    }};
}

/// Asserts that the error contains no part of a key.
fn assert_no_hex(error: &KeyFileError) {
    let text = format!("{error} {:?}", error.kind());
    let mut runs = text.as_bytes().split(|byte| !byte.is_ascii_hexdigit());
    assert!(runs.all(|run| run.len() < 8), "{text}");
}

#[test]
fn parses_format() {
    let content = "# comment\r\n\r\nalice:00Ff000000000001\r\nalice:0100000000000000\n \t \n\
        web-1.example:0200000000000000\n#\tcomment: \u{a0}\n设备-1:0300000000000000";
    let expected = [
        "alice:00ff000000000001",
        "alice:0100000000000000",
        "web-1.example:0200000000000000",
        "设备-1:0300000000000000",
    ];
    assert_eq!(lines(content), expected);
    // A comment may have another encoding.
    assert_eq!(lines(b"# m\xfcller\nalice:0100000000000000\n"), ["alice:0100000000000000"]);
}

/// If the last colon separated the parts, an id could contain a key.
#[test]
fn more_than_one_colon_is_an_error() {
    for line in [
        format!("alice:{KEY}:1001"),
        format!("alice:{KEY}:"),
        format!("alice:{KEY}:{KEY}"),
        format!("alice::{KEY}"),
        format!(":alice:{KEY}"),
        format!("host:8888:{KEY}"),
        format!("alice:{KEY}bob:{KEY}"),
    ] {
        assert_refused!(format!("bob:{KEY}\n{line}\n"), Some(2), Kind::TooManyColons);
    }
}

#[test]
fn white_space_in_an_entry_is_an_error() {
    let blanks = [
        ' ', '\t', '\u{b}', '\u{c}', '\u{85}', '\u{a0}', '\u{2003}', '\u{2028}', '\u{3000}', '\u{ad}',
        '\u{200b}', '\u{200d}', '\u{202e}', '\u{2060}', '\u{feff}', '\u{fe0f}', '\u{3164}',
    ];
    for blank in blanks {
        for line in [
            format!("{blank}alice:{KEY}"),
            format!("al{blank}ice:{KEY}"),
            format!("alice{blank}:{KEY}"),
            format!("alice:{blank}{KEY}"),
            format!("alice:{}{blank}{}", &KEY[..32], &KEY[32..]),
            format!("alice:{KEY}{blank}"),
            format!("alice:{KEY}{blank}\r"),
            format!("alice:{KEY}{blank}bob:{KEY}"),
            format!("alice:{KEY}{blank}# comment"),
        ] {
            assert_refused!(format!("bob:{KEY}\n\n{line}\n"), Some(3), Kind::WhiteSpace);
        }
    }
    // An indented comment is no comment.
    assert_refused!(format!("alice:{KEY}\n  # bob\n"), Some(2), Kind::WhiteSpace);
}

#[test]
fn control_character_in_an_entry_is_an_error() {
    for control in ['\u{1}', '\u{8}', '\u{1b}', '\u{7f}', '\u{9b}'] {
        for line in [format!("al{control}ice:{KEY}"), format!("alice:{KEY}{control}")] {
            assert_refused!(format!("{line}\n"), Some(1), Kind::ControlCharacter);
        }
    }
}

#[test]
fn carriage_return_within_a_line_is_an_error() {
    for (content, line) in [
        (format!("alice:{KEY}\rbob:{KEY}\r"), 1),
        (format!("alice:{KEY}\r"), 1),
        (format!("alice:{KEY}\r\nbob:{KEY}\r\r\n"), 2),
        (format!("alice:{KEY}\nbob:{KEY}\rcarol:{KEY}\n"), 2),
        (format!("\ralice:{KEY}\n"), 1),
        // The whole file is one comment, which hides the keys.
        (format!("# comment\ralice:{KEY}\rbob:{KEY}\r"), 1),
        (format!("alice:{KEY}\n\r"), 2),
    ] {
        assert_refused!(content, Some(line), Kind::CarriageReturn);
    }
    assert_eq!(lines(format!("alice:{KEY}\r\n# x\r\n\r\nbob:{KEY}")).len(), 2);
}

/// The byte order mark must not become a part of the first id.
#[test]
fn utf8_byte_order_mark_is_skipped_and_others_are_named() {
    let content = format!("alice:{KEY}\r\nbob:{KEY}\r\n");
    assert_eq!(lines(format!("\u{feff}{content}")), lines(&content));
    assert_eq!(lines(format!("\u{feff}# comment\n{content}")), lines(&content));
    assert_refused!(format!("\u{feff}\u{feff}{content}"), Some(1), Kind::WhiteSpace);
    assert_refused!(format!("{content}\u{feff}carol:{KEY}\n"), Some(3), Kind::WhiteSpace);

    let utf16 = |text: &str, to: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to).collect::<Vec<u8>>();
    let utf32 =
        |text: &str, to: fn(u32) -> [u8; 4]| text.chars().map(u32::from).flat_map(to).collect::<Vec<u8>>();
    let marked = format!("\u{feff}{content}");
    for to in [u16::to_be_bytes, u16::to_le_bytes] {
        assert_refused!(utf16(&marked, to), None, Kind::Encoding { found: "UTF-16" });
        assert_refused!(utf16(&content, to), Some(1), Kind::Nul);
        assert!(parse(utf16(&content, to)).unwrap_err().to_string().contains("UTF-16"));
    }
    for to in [u32::to_be_bytes, u32::to_le_bytes] {
        assert_refused!(utf32(&marked, to), None, Kind::Encoding { found: "UTF-32" });
        assert_refused!(utf32(&content, to), Some(1), Kind::Nul);
    }
    // A file that was not written to the end before the power failed.
    assert_refused!(format!("alice:{KEY}\n\0\0\0\0"), Some(2), Kind::Nul);
    assert_refused!(format!("# comment\0\nalice:{KEY}\n"), Some(1), Kind::Nul);
}

#[test]
fn invalid_id_is_an_error() {
    assert_refused!(format!("al\u{308}ice\":{KEY}"), Some(1), Kind::Key(KeyError::IdNotPrintable));
    assert_refused!(format!("'alice':{KEY}"), Some(1), Kind::Key(KeyError::IdNotPrintable));
    assert_refused!(format!("DOMAIN\\alice:{KEY}"), Some(1), Kind::Key(KeyError::IdNotPrintable));
    assert_refused!([b"m\xfcller:", KEY.as_bytes()].concat(), Some(1), Kind::NotUtf8);
    assert_refused!([b"alice\xff:", KEY.as_bytes()].concat(), Some(1), Kind::NotUtf8);
    assert_refused!(format!(":{KEY}"), Some(1), Kind::Key(KeyError::IdLength(0)));
    assert_refused!(format!("{}:{KEY}", "i".repeat(256)), Some(1), Kind::Key(KeyError::IdLength(256)));
    // The parts are in the wrong order, or the line begins with another key.
    for line in [
        format!("{KEY}:alice"),
        format!("{KEY}:{KEY}"),
        format!("{}:{KEY}", &KEY[..32]),
        format!("alice-{}:{KEY}", KEY.to_uppercase()),
    ] {
        assert_refused!(format!("bob:{KEY}\n{line}"), Some(2), Kind::Key(KeyError::IdLikeKey));
    }
    // A UUID and a short hash are ids.
    for id in ["550e8400-e29b-41d4-a716-446655440000", &KEY[..31], "c0ffee"] {
        assert_eq!(lines(format!("{id}:{KEY}")), [format!("{id}:{KEY}")]);
    }
}

#[test]
fn invalid_key_is_an_error() {
    for digits in ["", "0", "zz", &KEY[1..], "0x0011223344556677", "５f0c63a8d1f24f5e"] {
        let empty = digits.is_empty();
        assert_refused!(
            format!("alice:{KEY}\nbob:{digits}\n"),
            Some(2),
            Kind::Key(error) if *error == if empty { KeyError::Empty } else { KeyError::NotHex }
        );
    }
    assert_refused!("bob:1001", Some(1), Kind::Key(KeyError::TooShort { min: 8 }));
    assert_refused!("bob:00112233445566", Some(1), Kind::Key(KeyError::TooShort { min: 8 }));
    assert_refused!("bob:0000000000000000", Some(1), Kind::Key(KeyError::AllZero));
    assert_eq!(lines("bob:0011223344556677"), ["bob:0011223344556677"]);
    let long = "5f".repeat(Key::MAX_INPUT_LEN);
    assert_eq!(lines(format!("bob:{long}")), [format!("bob:{long}")]);
    assert_refused!(format!("bob:{long}5f"), Some(1), Kind::Key(KeyError::TooLong { max: 1024 }));
    assert_refused!("bob", Some(1), Kind::NoColon);
    assert_refused!(KEY, Some(1), Kind::NoColon);
}

#[test]
fn error_names_line_and_remedy_without_content() {
    for (line, problem) in [
        ("c0ffee", "no colon between id and key; the format of a line is `id:hex`"),
        ("bob:c0ffe", "the key must be an even number of hexadecimal digits, without spaces"),
        ("bob:c0ffeezz", "the key must be an even number of hexadecimal digits, without spaces"),
        ("bob:c0ffee", "the key is shorter than 8 bytes; generate one with `openssl rand -hex 32`"),
        ("bob:", "the key is empty; generate one with `openssl rand -hex 32`"),
        (":c0ffee", "a key id must have 1 to 255 bytes, this one has 0"),
        ("bob:c0ffee:1001", "more than one colon; the format of a line is `id:hex`, and an id has no colon"),
        (
            "bob: c0ffee",
            "a space, a tab or an invisible character; write one entry `id:hex` per line, without any of them",
        ),
    ] {
        let error = parse(format!("alice:{KEY}\n\n{line}\n")).unwrap_err();
        let message = error.to_string();
        assert_eq!(message, format!("key file keys, line 3: {problem}"));
        assert_eq!(format!("{error:?}"), message);
        assert!(!message.contains("c0ffe"), "{message}");
    }
}

/// E.g. because a script appends a line again.
#[test]
fn repeated_line_counts_once() {
    let upper = KEY.to_uppercase();
    let content = format!(
        "alice:{KEY}\nalice:0011223344556677\nalice:{KEY}\r\nbob:{KEY}\nalice:{upper}\n# alice\nalice:{KEY}\n\
         alice:{KEY}\nbob:{upper}"
    );
    assert_eq!(
        lines(content),
        [format!("alice:{KEY}"), "alice:0011223344556677".to_owned(), format!("bob:{KEY}")]
    );
    // HMAC would not tell these keys apart, but they are different lines.
    assert_eq!(lines("a:0011223344556677\na:001122334455667700").len(), 2);
}

#[test]
fn file_without_keys_is_an_error() {
    for content in ["", "\n\n", "# only a comment\n", "\u{feff}", "\u{feff}\r\n", " \n"] {
        let error = parse(content).unwrap_err();
        assert!(matches!(error.kind(), Kind::Key(KeyError::NoKeys)), "{error}");
        assert!(error.line().is_none());
        assert!(error.to_string().contains("the file contains no keys"), "{error}");
    }
}

#[test]
fn missing_file_is_an_io_error() {
    let error = KeyFile::new("/does/not/exist").read().unwrap_err();
    let Kind::Io(io) = error.kind() else { panic!("{error}") };
    assert_eq!(io.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(error.to_string(), format!("key file /does/not/exist: {io}"));
    assert_eq!(format!("{error:?}"), error.to_string());
    // `Display` includes the I/O error already.
    assert!(std::error::Error::source(&error).is_none());
}

#[test]
fn file_larger_than_the_maximum_is_not_read() {
    // A million entries with ids as long as UUIDs fit.
    const { assert!(KeyFile::MAX_LEN >= 1_000_000 * (36 + 1 + 64 + 1)) };
    let file = tempfile::NamedTempFile::new().unwrap();
    // Sparse: it needs no space.
    file.as_file().set_len(KeyFile::MAX_LEN + 1).unwrap();
    let error = KeyFile::new(file.path()).read().unwrap_err();
    assert!(matches!(error.kind(), Kind::TooLarge { max: KeyFile::MAX_LEN }), "{error}");
}

/// `KeyId::from_text` and the parser accept the same ids.
#[test]
fn ids_of_files_are_ids_of_text() {
    // The blocks with special characters, and ordinary ones.
    let blocks =
        ['\0'..='\u{3400}', '\u{d000}'..='\u{ffff}', '\u{1b000}'..='\u{1d200}', '\u{e0000}'..='\u{e1000}'];
    for c in blocks.into_iter().flatten() {
        let id = format!("a{c}b");
        let from_text = KeyId::from_text(&id);
        let from_file = parse(format!("{id}:{KEY}"));
        // A file with `a\nb:KEY` has an entry in its second line.
        assert!(from_text.is_ok() == from_file.is_ok(), "{c:?}");
        if let Ok(from_text) = from_text {
            assert_eq!(*from_file.unwrap()[0].id(), from_text);
            assert_eq!(from_text.to_string(), id);
        }
    }
    assert!(KeyId::from_text(&format!("#a:{KEY}")).is_err());
}

/// A small generator of random numbers (xorshift64*), with a fixed seed so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 32) % end as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(*self.pick(b"0123456789abcdefABCDEF"))).collect()
    }

    fn id(&mut self) -> String {
        match self.below(4) {
            0 => (*self.pick(&["alice", "bob", "web-1.example.org", "设备-1", "müller@host", "_", "a"]))
                .to_owned(),
            1 => {
                let digits = 1 + self.below(31);
                self.hex(digits)
            }
            _ => (0..=self.below(12))
                .map(|_| char::from(*self.pick(b"abcxyzABCXYZ0189.-_+=/@%!()[]{}<>,;^~|&*#")))
                .collect(),
        }
    }

    /// Returns a valid file, but for ids that begin with `#`.
    fn file(&mut self) -> Vec<u8> {
        let mut text = String::new();
        if self.below(8) == 0 {
            text.push('\u{feff}');
        }
        let end = *self.pick(&["\n", "\n", "\r\n"]);
        let mut entries = Vec::<String>::new();
        for _ in 0..=self.below(4) {
            match self.below(10) {
                0 => text.push_str("# a comment: 0011223344556677"),
                1 => text.push_str(self.pick::<&str>(&["", " ", "\t"])),
                2 if !entries.is_empty() => text.push_str(self.pick::<String>(&entries)),
                _ => {
                    let digits = 2 * (8 + self.below(33));
                    let entry = format!("{}:{}", self.id(), self.hex(digits));
                    text.push_str(&entry);
                    entries.push(entry);
                }
            }
            text.push_str(end);
        }
        if self.below(4) == 0 {
            text.truncate(text.trim_end_matches(end).len());
        }
        text.into_bytes()
    }

    /// Changes the content in a way that happens to files, or at random.
    fn mutate(&mut self, content: &mut Vec<u8>) {
        const PIECES: [&[u8]; 28] = [
            b":",
            b"::",
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\r",
            b"\t",
            b" ",
            b"\0",
            b"#",
            b"0",
            b"f",
            b"A",
            b"g",
            b"'",
            b"\"",
            b"\\",
            b"\x1b",
            b"\x7f",
            b"\x80",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\xc2\xa0",
            b"\xe2\x80\x8b",
            b"\xe2\x80\xa8",
            b":1001",
            b"0123456789abcdef0123456789ABCDEF",
        ];
        let at = self.below(content.len() + 1);
        match self.below(10) {
            0 => drop(content.splice(at..at, self.pick(&PIECES).iter().copied())),
            1 if at < content.len() => drop(content.remove(at)),
            2 if at < content.len() => drop(content.splice(at..=at, self.pick(&PIECES).iter().copied())),
            3 if at < content.len() => content[at] = self.next().to_le_bytes()[0],
            4 => content.truncate(at),
            // Other line ends.
            5 => {
                let to = *self.pick(&[b"\r".as_slice(), b" ", b"\t", b"", b"\r\n", b":"]);
                *content = content.split(|&byte| byte == b'\n').collect::<Vec<_>>().join(to);
            }
            // One line end is missing, or is something else.
            6 => {
                let ends: Vec<_> = (0..content.len()).filter(|&i| content[i] == b'\n').collect();
                if !ends.is_empty() {
                    let end = *self.pick(&ends);
                    let piece = if self.below(2) == 0 { b"" } else { *self.pick(&PIECES) };
                    drop(content.splice(end..=end, piece.iter().copied()));
                }
            }
            // Something around an end of a line or around a colon.
            7 | 8 => {
                let places: Vec<_> = (0..content.len()).filter(|&i| b"\n:".contains(&content[i])).collect();
                if !places.is_empty() {
                    let place = self.pick(&places) + self.below(2);
                    drop(content.splice(place..place, self.pick(&PIECES).iter().copied()));
                }
            }
            // A part of the file once more, at another place.
            _ => {
                let start = self.below(at + 1);
                let part = content[start..at].to_vec();
                let to = self.below(content.len() + 1);
                drop(content.splice(to..to, part));
            }
        }
    }
}

/// Asserts what holds for every content, and returns whether it loads.
fn assert_properties(content: &[u8]) -> bool {
    let entries = match parse(content) {
        Ok(entries) => entries,
        Err(error) => {
            assert_no_hex(&error);
            let is_of_whole_file =
                matches!(error.kind(), Kind::Encoding { .. } | Kind::Key(KeyError::NoKeys));
            assert_eq!(error.line().is_none(), is_of_whole_file, "{error}");
            return false;
        }
    };
    let printed: Vec<_> = entries.iter().map(line).collect();
    // The entries are the lines of the file.
    let text = String::from_utf8_lossy(content);
    let mut written = HashSet::new();
    let written: Vec<_> = text
        .strip_prefix('\u{feff}')
        .unwrap_or(&text)
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .filter(|line| !line.starts_with('#') && !line.trim_matches([' ', '\t']).is_empty())
        .map(|line| {
            let (id, digits) = line.split_once(':').unwrap();
            format!("{id}:{}", digits.to_lowercase())
        })
        .filter(|line| written.insert(line.clone()))
        .collect();
    assert_eq!(printed, written);
    // Printed entries load as the same entries.
    assert_eq!(lines(printed.join("\n")), printed);
    // No id contains half of a key.
    for id in entries.iter().map(|entry| entry.id().to_string().to_lowercase()).filter(|id| id.len() >= 32) {
        for key in entries.iter().map(|entry| entry.key().to_hex()) {
            assert!(key.as_bytes().windows(32).all(|part| !id.contains(std::str::from_utf8(part).unwrap())));
        }
    }
    true
}

#[test]
fn entries_are_printed_back_and_no_id_contains_a_key() {
    const INPUTS: usize = 120_000;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut valid, mut mutated) = (0, 0);
    for input in 0..INPUTS {
        let mut content = random.file();
        let mutations = input % 4;
        for _ in 0..mutations {
            random.mutate(&mut content);
        }
        let loads = assert_properties(&content);
        *if mutations == 0 { &mut valid } else { &mut mutated } += usize::from(loads);
    }
    // The inputs are of both kinds: most valid files have an entry, and a mutation may also be harmless.
    assert!(valid > INPUTS / 4 * 9 / 10, "{valid}");
    assert!((INPUTS / 20..INPUTS / 2).contains(&mutated), "{mutated}");
}

/// Writes a private file, in place.
fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    #[cfg(unix)]
    set_mode(path, 0o600);
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

type Reports = mpsc::UnboundedReceiver<Result<String, String>>;

/// Watches the file and reports the entries that were passed to `replace`.
fn watch(file: KeyFile, period: Duration) -> (impl Future<Output = ()> + Send, Reports) {
    let (report, reports) = mpsc::unbounded_channel();
    let replaced = report.clone();
    let replace = move |entries: Vec<KeyEntry>| {
        let _ = replaced.send(Ok(entries.iter().map(line).collect::<Vec<_>>().join(" ")));
        Ok(())
    };
    let report = move |outcome: Result<usize, ReloadError>| {
        if let Err(error) = outcome {
            let _ = report.send(Err(error.to_string()));
        }
    };
    (file.watch(period, replace, report), reports)
}

const TICK: Duration = Duration::from_millis(10);

/// The second change may have the same time as the first. Fails on a file system with coarse times, e.g. ramfs, if
/// only the times are compared.
#[tokio::test]
async fn two_writes_within_one_tick_of_the_clock_are_both_seen() {
    use std::io::{Seek as _, Write as _};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let content = |n: u32| format!("alice:{n:016x}");
    for round in 0..60 {
        write(&path, content(1));
        let (watch, mut reports) = watch(KeyFile::new(&path), Duration::from_millis(1));
        let watch = tokio::spawn(watch);
        assert_eq!(reports.recv().await.unwrap(), Ok(content(1)));
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(content(2).as_bytes()).unwrap();
        tokio::time::sleep(Duration::from_micros(200 + 37 * (round % 50))).await;
        file.rewind().unwrap();
        file.write_all(content(3).as_bytes()).unwrap();
        let last = async { while reports.recv().await.unwrap() != Ok(content(3)) {} };
        tokio::time::timeout(Duration::from_secs(10), last).await.expect("the second write is seen");
        watch.abort();
    }
}

/// The content is compared only while the file is young. Later, a change in place is seen by its time.
#[tokio::test]
async fn change_in_place_of_equal_length_is_seen_and_unchanged_file_is_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    write(&path, "alice:0011223344556677\n");
    let (watch, mut reports) = watch(KeyFile::new(&path), TICK);
    tokio::spawn(watch);
    assert_eq!(reports.recv().await.unwrap(), Ok("alice:0011223344556677".to_owned()));
    tokio::time::sleep(Duration::from_millis(2300)).await;
    assert!(reports.try_recv().is_err(), "the file has not changed");
    fs::write(&path, "alice:8899aabbccddeeff\n").unwrap();
    assert_eq!(reports.recv().await.unwrap(), Ok("alice:8899aabbccddeeff".to_owned()));
}

/// `replace` stands for a file system that does not respond.
#[test]
fn runtime_shuts_down_while_a_check_blocks() {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    write(&path, format!("alice:{KEY}\n"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let (entered, mut has_entered) = mpsc::unbounded_channel();
    runtime.block_on(async {
        let replace = move |_| {
            entered.send(()).unwrap();
            let _ = blocked.recv();
            Ok(())
        };
        tokio::spawn(KeyFile::new(&*path).watch(TICK, replace, |_| ()));
        has_entered.recv().await.unwrap();
    });
    let (ended, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        ended.send(()).unwrap();
    });
    has_ended.recv_timeout(Duration::from_secs(3)).expect("the runtime has shut down");
    drop(unblock);
}

#[tokio::test]
async fn panic_of_replace_is_passed_on() {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    write(&path, format!("alice:{KEY}\n"));
    let watch = KeyFile::new(&*path).watch(TICK, |_| panic!("no more keys"), |_| ());
    let panic = tokio::spawn(watch).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"no more keys"));
}

/// Files that are not files, and permissions.
#[cfg(unix)]
mod unix {
    use std::fmt::Write as _;
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::sync::mpsc::TryRecvError;
    use std::thread;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    use super::*;

    fn make_fifo(path: &Path) {
        let status = Command::new("mkfifo").arg("-m").arg("600").arg(path).status().unwrap();
        assert!(status.success());
    }

    /// Returns whether a process has opened the FIFO for reading, or waits for a writer.
    fn has_reader(path: &Path) -> bool {
        match rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(_) => true,
            Err(Errno::NXIO) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn fifo_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        make_fifo(&path);
        let writer = thread::spawn({
            let path = path.clone();
            move || fs::write(path, format!("alice:{KEY}\n")).unwrap()
        });
        let file = KeyFile::new(&path);
        assert_eq!(file.read().unwrap().iter().map(line).collect::<Vec<_>>(), [format!("alice:{KEY}")]);
        writer.join().unwrap();
        for file in [file.clone(), file] {
            let error = file.read().unwrap_err();
            assert!(matches!(error.kind(), Kind::Fifo), "{error}");
        }
    }

    #[test]
    fn fifo_is_read_by_one_of_two_waiting_threads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        make_fifo(&path);
        let file = KeyFile::new(&path);
        let readers = [file.clone(), file].map(|file| thread::spawn(move || file.read()));
        // Both wait for a writer now. If one of them was late, the next writer wakes it.
        thread::sleep(Duration::from_millis(100));
        while !readers.iter().all(thread::JoinHandle::is_finished) {
            let writer = rustix::fs::open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
            if let Ok(writer) = writer {
                let _ = rustix::io::write(&writer, format!("alice:{KEY}\n").as_bytes());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let results = readers.map(|reader| reader.join().unwrap());
        assert!(results.iter().any(Result::is_ok), "{results:?}");
        assert!(
            results.iter().any(|result| matches!(result, Err(error) if matches!(error.kind(), Kind::Fifo))),
            "{results:?}"
        );
    }

    /// Longer than any buffer of a pipe.
    #[test]
    fn long_fifo_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        make_fifo(&path);
        let content = (1..=5000u32).fold(String::new(), |mut content, n| {
            writeln!(content, "id-{n}:{n:064x}").unwrap();
            content
        });
        let writer = thread::spawn({
            let (path, content) = (path.clone(), content.clone());
            move || fs::write(path, content).unwrap()
        });
        let entries = KeyFile::new(&path).read().unwrap();
        assert!(entries.iter().map(line).eq(content.lines()));
        writer.join().unwrap();
    }

    #[test]
    fn fifo_has_permissions_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        make_fifo(&path);
        set_mode(&path, 0o644);
        let writer = thread::spawn({
            let path = path.clone();
            // The reader closes the FIFO without reading.
            move || drop(fs::write(path, format!("alice:{KEY}\n")))
        });
        let error = KeyFile::new(&path).read().unwrap_err();
        assert!(matches!(error.kind(), Kind::InsecurePermissions { mode: 0o644, .. }), "{error}");
        writer.join().unwrap();
    }

    /// Opening a FIFO waits for a writer, maybe forever.
    #[tokio::test]
    async fn watch_never_opens_a_fifo_and_reports_it_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        make_fifo(&path);
        let (watch, mut reports) = watch(KeyFile::new(&path), Duration::from_millis(1));
        let watch = tokio::spawn(watch);
        let error = reports.recv().await.unwrap().unwrap_err();
        assert!(error.ends_with("use a regular file to replace keys while the program runs"), "{error}");
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!has_reader(&path));
        }
        assert!(reports.try_recv().is_err(), "reported once");
        // Another FIFO is not reported either.
        let other = directory.path().join("other");
        make_fifo(&other);
        fs::rename(other, &path).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!has_reader(&path));
        assert!(reports.try_recv().is_err(), "reported once");
        watch.abort();
    }

    #[test]
    fn file_that_becomes_a_fifo_is_reported_and_watched_when_put_right() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let path = at("keys");
        write(&path, "a:0500000000000000\n");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (watch, mut reports) = watch(KeyFile::new(&path), TICK);
            tokio::spawn(watch);
            assert_eq!(reports.recv().await.unwrap(), Ok("a:0500000000000000".to_owned()));
            make_fifo(&at("fifo"));
            fs::rename(at("fifo"), &path).unwrap();
            let error = reports.recv().await.unwrap().unwrap_err();
            assert!(error.contains("a FIFO"), "{error}");
            write(&at("new"), "b:0600000000000000\n");
            fs::rename(at("new"), &path).unwrap();
            assert_eq!(reports.recv().await.unwrap(), Ok("b:0600000000000000".to_owned()));
            make_fifo(&at("fifo"));
            fs::rename(at("fifo"), &path).unwrap();
            reports.recv().await.unwrap().unwrap_err();
        });
        let (ended, has_ended) = std::sync::mpsc::channel();
        thread::spawn(move || {
            drop(runtime);
            ended.send(()).unwrap();
        });
        has_ended.recv_timeout(Duration::from_secs(3)).expect("the runtime has shut down");
    }

    #[test]
    fn directories_devices_and_sockets_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = directory.path().join("link");
        symlink("/dev/zero", &link).unwrap();
        for (path, expected) in [
            (directory.path(), "directory"),
            (Path::new("/dev/null"), "device"),
            (&link, "device"),
            (&socket, "socket"),
        ] {
            // Permissions are another matter.
            let error = KeyFile::new(path).dangerous_allow_insecure_permissions().read().unwrap_err();
            assert!(matches!(error.kind(), Kind::NotAFile { found } if *found == expected), "{error}");
            let expected = format!("this is a {expected}; give the path of a regular file");
            assert_eq!(error.to_string(), format!("key file {}: {expected}", path.display()));
        }
    }

    #[test]
    fn insecure_permissions_are_an_error_unless_allowed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), format!("alice:{KEY}\n"));
        let owner = file.path().metadata().unwrap().uid();
        let path = file.path().display();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o440, 0o444, 0o666, 0o610] {
            set_mode(file.path(), mode);
            let error = KeyFile::new(file.path()).read().unwrap_err();
            assert!(
                matches!(error.kind(), Kind::InsecurePermissions { mode: m, owner: o } if (*m, *o) == (mode, owner)),
                "{error}"
            );
            let group_may_read = matches!(mode, 0o440 | 0o640);
            let remedy = if group_may_read {
                "allow the group to read with `KeyFile::allow_group_read`"
            } else {
                "skip the check with `KeyFile::dangerous_allow_insecure_permissions`"
            };
            assert_eq!(
                error.to_string(),
                format!(
                    "key file {path}: permissions {mode:04o} (owner: uid {owner}) are too open; \
                     run `chmod 600 {path}`, or {remedy}"
                )
            );
            assert_eq!(
                KeyFile::new(file.path()).allow_group_read().read().is_ok(),
                group_may_read,
                "{mode:o}"
            );
            let any = KeyFile::new(file.path()).dangerous_allow_insecure_permissions();
            any.read().unwrap();
            any.allow_group_read().read().unwrap();
        }
        for mode in [0o600, 0o400, 0o700] {
            set_mode(file.path(), mode);
            KeyFile::new(file.path()).read().unwrap();
            KeyFile::new(file.path()).allow_group_read().read().unwrap();
        }
    }

    /// A link to a file of another user. Needs root.
    #[test]
    fn foreign_owner_is_an_error_unless_allowed() {
        const OTHER_USER: u32 = 65534;

        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("mallory"), directory.path().join("keys"));
        write(&file, format!("mallory:{KEY}\n"));
        symlink("mallory", &link).unwrap();
        KeyFile::new(&link).read().unwrap();
        let user = file.metadata().unwrap().uid();
        if chown(&file, Some(OTHER_USER), Some(OTHER_USER)).is_err() {
            return;
        }
        let error = KeyFile::new(&link).read().unwrap_err();
        assert!(
            matches!(error.kind(), Kind::ForeignOwner { mode: 0o600, owner: OTHER_USER, user: u } if *u == user),
            "{error}"
        );
        let path = link.display();
        assert_eq!(
            error.to_string(),
            format!(
                "key file {path}: the owner (uid 65534, permissions 0600) is neither this user nor root; \
                 run `chown {user} {path}`, or skip the check with `KeyFile::dangerous_allow_insecure_permissions`"
            )
        );
        KeyFile::new(&link).allow_group_read().read().unwrap_err();
        KeyFile::new(&link).dangerous_allow_insecure_permissions().read().unwrap();
    }

    /// The path alternates between a file of insecure permissions and another one. The first must never be read, also
    /// if the path refers to the second one when the permissions are checked.
    #[test]
    fn permissions_are_those_of_the_file_that_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(&at("private"), "private:0011223344556677\n");
        write(&at("public"), "public:0011223344556677\n");
        set_mode(&at("public"), 0o644);
        symlink("private", at("keys")).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            // Dropped also if an assertion fails.
            let stop = stop;
            scope.spawn(move || {
                while stopped.try_recv() != Err(TryRecvError::Disconnected) {
                    for target in ["public", "private"] {
                        symlink(target, at("new")).unwrap();
                        fs::rename(at("new"), at("keys")).unwrap();
                    }
                }
            });
            let file = KeyFile::new(at("keys"));
            let mut refused = 0;
            for _ in 0..5000 {
                match file.read() {
                    Ok(entries) => assert_eq!(*entries[0].id(), "private"),
                    Err(error) => {
                        assert!(
                            matches!(error.kind(), Kind::InsecurePermissions { mode: 0o644, .. }),
                            "{error}"
                        );
                        refused += 1;
                    }
                }
            }
            drop(stop);
            assert!(refused > 0, "the files were not swapped");
        });
    }
}
