//! A key file that is read again when it changes: replaced, swapped by a link, broken, gone, and mended.

mod support;

use std::path::Path;
use std::time::Duration;

use support::Ring;
use tokio::sync::mpsc;
use tower_challenge::KeyFile;

fn ids(ring: &Ring) -> Vec<String> {
    ring.snapshot().iter().map(|key| key.identity().key_id().to_string()).collect()
}

/// As it should be done: a new file, renamed over the old one.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    private(&new);
    std::fs::rename(&new, path).unwrap();
}

fn private(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn follow(path: &Path) -> (Ring, mpsc::UnboundedReceiver<Result<usize, String>>) {
    let file = KeyFile::new(path);
    let ring = Ring::new(file.read().unwrap()).unwrap();
    let (told, tell) = mpsc::unbounded_channel();
    let kept = ring.clone();
    let follow = file.follow(
        Duration::from_millis(10),
        move |keys| kept.replace(keys),
        move |outcome| told.send(outcome.map_err(|error| error.to_string())).unwrap(),
    );
    tokio::spawn(follow);
    (ring, tell)
}

#[tokio::test]
async fn replaced_broken_gone_and_mended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    replace(&path, "a:01\n");
    let (ring, mut tell) = follow(&path);
    assert_eq!(tell.recv().await.unwrap(), Ok(1));

    replace(&path, "a:01\nb:02\n");
    assert_eq!(tell.recv().await.unwrap(), Ok(2));
    assert_eq!(ids(&ring), ["a", "b"]);

    replace(&path, "a:01\nc:zz\n");
    let error = tell.recv().await.unwrap().unwrap_err();
    // The name of the directory is random, and may have it in it.
    let said = error.strip_prefix(&format!("key file {}", path.display())).expect("it names the file");
    assert!(said.contains("line 2") && !said.contains("zz"), "{error}");
    assert_eq!(ids(&ring), ["a", "b"], "the old keys are kept");

    std::fs::remove_file(&path).unwrap();
    tell.recv().await.unwrap().unwrap_err();
    assert_eq!(ids(&ring), ["a", "b"]);

    // Too many keys of the ring's: an error of the keys, not of the file.
    let many: Vec<_> = (0..65).map(|id| format!("{id}:01")).collect();
    replace(&path, &many.join("\n"));
    assert_eq!(tell.recv().await.unwrap().unwrap_err(), "65 keys where at most 64 are tried");

    replace(&path, "d:04\n");
    assert_eq!(tell.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["d"]);

    // Nothing has changed, and nothing is told.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(tell.try_recv().is_err());
}

/// What could not be read is tried again although it has not changed: the fault may be this process's own.
#[cfg(unix)]
#[tokio::test]
async fn what_could_not_be_read_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    replace(&path, "old:01\n");
    let (ring, mut tell) = follow(&path);
    assert_eq!(tell.recv().await.unwrap(), Ok(1));
    // A directory can be looked at, and not be read.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    private(&path);
    let error = loop {
        // The moment in which there is nothing at all may be seen too.
        let error = tell.recv().await.unwrap().unwrap_err();
        if !error.contains("No such file") {
            break error;
        }
    };
    assert!(error.starts_with("key file"), "{error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(tell.try_recv().is_err(), "told once");
    assert_eq!(ids(&ring), ["old"]);
    std::fs::remove_dir(&path).unwrap();
    replace(&path, "new:02\n");
    loop {
        match tell.recv().await.unwrap() {
            Ok(count) => break assert_eq!(count, 1),
            Err(error) => assert!(error.contains("No such file"), "{error}"),
        }
    }
    assert_eq!(ids(&ring), ["new"]);
}

/// The way of Kubernetes: the file is a link into a directory that is a link, which is swapped.
#[cfg(unix)]
#[tokio::test]
async fn a_link_that_is_swapped() {
    use std::os::unix::fs::symlink;

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, content) in [("v1", "a:01\n"), ("v2", "b:02\n")] {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("keys"), content).unwrap();
        private(&at(version).join("keys"));
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/keys", at("keys")).unwrap();
    let (ring, mut tell) = follow(&at("keys"));
    assert_eq!(tell.recv().await.unwrap(), Ok(1));

    symlink("v2", at("..data_tmp")).unwrap();
    std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(tell.recv().await.unwrap(), Ok(1));
    assert_eq!(ids(&ring), ["b"]);
}
