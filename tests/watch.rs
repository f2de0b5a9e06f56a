//! `KeyFile::watch` re-reads a file that is replaced, invalid, removed or restored, or whose symbolic link is swapped.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tower_challenge::KeyFile;

use crate::support::Ring;

fn ids(ring: &Ring) -> Vec<String> {
    ring.snapshot().iter().map(|key| key.identity().key_id().to_string()).collect()
}

/// Replaces the file by renaming a new one over it, as recommended.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    private(&new);
    std::fs::rename(&new, path).unwrap();
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "there are no permission bits"))]
fn private(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn watch(path: &Path) -> (Ring, mpsc::UnboundedReceiver<Result<usize, String>>) {
    watch_every(path, Duration::from_millis(10))
}

fn watch_every(path: &Path, period: Duration) -> (Ring, mpsc::UnboundedReceiver<Result<usize, String>>) {
    let file = KeyFile::new(path);
    let ring = Ring::new(file.read().unwrap()).unwrap();
    let (report, reports) = mpsc::unbounded_channel();
    let watched = ring.clone();
    let watch = file.watch(
        period,
        move |keys| watched.replace(keys),
        move |outcome| report.send(outcome.map_err(|error| error.to_string())).unwrap(),
    );
    tokio::spawn(watch);
    (ring, reports)
}

#[tokio::test]
async fn file_replaced_invalid_removed_and_restored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    replace(&path, "a:0100000000000000\n");
    let (ring, mut reports) = watch(&path);
    assert_eq!(reports.recv().await.unwrap(), Ok(1));

    replace(&path, "a:0100000000000000\nb:0200000000000000\n");
    assert_eq!(reports.recv().await.unwrap(), Ok(2));
    assert_eq!(ids(&ring), ["a", "b"]);

    replace(&path, "a:0100000000000000\nc:zz\n");
    let error = reports.recv().await.unwrap().unwrap_err();
    // The name of the directory is random and may contain "zz".
    let rest = error.strip_prefix(&format!("key file {}", path.display())).expect("the error names the file");
    assert!(rest.contains("line 2") && !rest.contains("zz"), "{error}");
    assert_eq!(ids(&ring), ["a", "b"], "the ring keeps the old keys");

    std::fs::remove_file(&path).unwrap();
    reports.recv().await.unwrap().unwrap_err();
    assert_eq!(ids(&ring), ["a", "b"]);

    // More keys than the ring may hold: an error of the keys, not of the file.
    let many: Vec<_> = (0..65).map(|id| format!("{id}:01{id:014}")).collect();
    replace(&path, &many.join("\n"));
    let error = reports.recv().await.unwrap().unwrap_err();
    assert!(error.starts_with("65 keys, but at most 64 are tried"), "{error}");

    replace(&path, "d:0400000000000000\n");
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["d"]);

    // The file does not change, and nothing is reported.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reports.try_recv().is_err());
}

/// Something else is in the place of the file.
#[cfg(unix)]
#[tokio::test]
async fn directory_is_reported_once_and_the_file_that_replaces_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    replace(&path, "old:0100000000000000\n");
    let (ring, mut reports) = watch(&path);
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    private(&path);
    let error = loop {
        // The watch may also observe the moment between removal and creation.
        let error = reports.recv().await.unwrap().unwrap_err();
        if !error.contains("No such file") {
            break error;
        }
    };
    assert!(error.starts_with("key file"), "{error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reports.try_recv().is_err(), "reported once");
    assert_eq!(ids(&ring), ["old"]);
    std::fs::remove_dir(&path).unwrap();
    replace(&path, "new:0200000000000000\n");
    loop {
        match reports.recv().await.unwrap() {
            Ok(count) => break assert_eq!(count, 1),
            Err(error) => assert!(error.contains("No such file"), "{error}"),
        }
    }
    assert_eq!(ids(&ring), ["new"]);
}

/// A failed read is repeated although the file has not changed: the cause may be in this process. After an error, the
/// keys are reported even if they are the same as before.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unreadable_file_is_reported_once_and_retried() {
    use std::os::unix::fs::symlink;

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let link_to = |target: &Path| {
        symlink(target, at("link")).unwrap();
        std::fs::rename(at("link"), at("keys")).unwrap();
    };
    replace(&at("file"), "a:0100000000000000\n");
    link_to(&at("file"));
    let (ring, mut reports) = watch(&at("keys"));
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    // A regular file of this process that cannot be read from its start.
    link_to(Path::new("/proc/self/mem"));
    let error = reports.recv().await.unwrap().unwrap_err();
    assert!(error.contains("os error 5"), "{error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reports.try_recv().is_err(), "reported once");
    assert_eq!(ids(&ring), ["a"]);
    link_to(&at("file"));
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["a"]);
}

/// Kubernetes mounts secrets in this way: the file is a link into a directory that is a link, which is swapped.
#[cfg(unix)]
#[tokio::test]
async fn swapped_symbolic_link_is_noticed() {
    use std::os::unix::fs::symlink;

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, content) in [("v1", "a:0100000000000000\n"), ("v2", "b:0200000000000000\n")] {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("keys"), content).unwrap();
        private(&at(version).join("keys"));
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/keys", at("keys")).unwrap();
    let (ring, mut reports) = watch(&at("keys"));
    assert_eq!(reports.recv().await.unwrap(), Ok(1));

    symlink("v2", at("..data_tmp")).unwrap();
    std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["b"]);
}

#[tokio::test]
async fn period_of_zero_does_not_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    replace(&path, "a:0100000000000000\n");
    let (ring, mut reports) = watch_every(&path, Duration::ZERO);
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    replace(&path, "b:0200000000000000\n");
    assert_eq!(reports.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["b"]);
}
