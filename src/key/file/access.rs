use std::fs::Metadata;

use super::KeyFileErrorKind;

/// The permissions that a key file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    Owner,
    OwnerAndGroupRead,
    Any,
}

/// Checks the owner and the permissions of the opened file. Metadata of the path would be of no use: the file could be
/// replaced between the check and the opening.
#[cfg(unix)]
pub(super) fn check(metadata: &Metadata, access: Access) -> Result<(), KeyFileErrorKind> {
    use std::os::unix::fs::MetadataExt as _;

    check_mode(metadata.mode(), metadata.uid(), rustix::process::geteuid().as_raw(), access)
}

#[cfg(unix)]
fn check_mode(mode: u32, owner: u32, user: u32, access: Access) -> Result<(), KeyFileErrorKind> {
    const ROOT: u32 = 0;
    let too_open = match access {
        Access::Owner => 0o077,
        Access::OwnerAndGroupRead => 0o037,
        Access::Any => return Ok(()),
    };
    let mode = mode & 0o777;
    // An owner can change the permissions at any time, so they say nothing about a foreign file.
    if owner != user && owner != ROOT {
        Err(KeyFileErrorKind::ForeignOwner { mode, owner, user })
    } else if mode & too_open != 0 {
        Err(KeyFileErrorKind::InsecurePermissions { mode, owner })
    } else {
        Ok(())
    }
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(super) fn check(_: &Metadata, _: Access) -> Result<(), KeyFileErrorKind> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let is_secure = |mode, access| check_mode(mode, 7, 7, access).is_ok();
        for mode in 0..=0o777 {
            let (group, others) = (mode >> 3 & 7, mode & 7);
            assert_eq!(is_secure(mode, Access::Owner), group == 0 && others == 0, "{mode:o}");
            assert_eq!(
                is_secure(mode, Access::OwnerAndGroupRead),
                matches!(group, 0 | 4) && others == 0,
                "{mode:o}"
            );
            assert!(is_secure(mode, Access::Any));
        }
        // `st_mode` also contains the type of the file.
        assert!(is_secure(0o100_600, Access::Owner));
    }

    #[test]
    fn owner_is_the_user_or_root() {
        let is_trusted = |owner, user, access| check_mode(0o600, owner, user, access).is_ok();
        for access in [Access::Owner, Access::OwnerAndGroupRead] {
            assert!(is_trusted(7, 7, access));
            assert!(is_trusted(0, 7, access));
            assert!(!is_trusted(8, 7, access));
            assert!(!is_trusted(8, 0, access));
        }
        assert!(is_trusted(8, 7, Access::Any));
        let error = check_mode(0o100_440, 8, 7, Access::OwnerAndGroupRead).unwrap_err();
        assert!(
            matches!(error, KeyFileErrorKind::ForeignOwner { mode: 0o440, owner: 8, user: 7 }),
            "{error:?}"
        );
    }
}
