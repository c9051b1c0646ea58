//! Names of a kernel device that do not change with its number: `/dev/twinblk/RESOURCE` and
//! `/dev/twinblk/by-resource/RESOURCE/VOLUME`.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where they are.
pub(super) const DIRECTORY: &str = "/dev/twinblk";
/// A resource of this name has only the long name.
const BY_RESOURCE: &str = "by-resource";

/// Each name, and how many directories up `/dev` is.
fn names(directory: &Path, resource: &str, volume: u16) -> Vec<(PathBuf, &'static str)> {
    let long = directory.join(BY_RESOURCE).join(resource);
    let mut names = vec![(long.join(volume.to_string()), "../../../")];
    if volume == 0 && resource != BY_RESOURCE {
        names.push((directory.join(resource), "../"));
    }
    names
}

/// Makes them lead to /dev/nbd`index`.
pub(super) fn make(directory: &Path, resource: &str, volume: u16, index: u32) -> io::Result<()> {
    for (path, up) in names(directory, resource, volume) {
        let parent = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent)?;
        // Whoever follows the name meanwhile finds the old one or the new one.
        let new = parent.join(format!(".{resource}.{volume}.new"));
        let _ = std::fs::remove_file(&new);
        symlink(format!("{up}nbd{index}"), &new)?;
        std::fs::rename(&new, &path)?;
    }
    Ok(())
}

/// The number of the device they lead to.
pub(super) fn target(directory: &Path, resource: &str, volume: u16) -> Option<u32> {
    let (path, up) = names(directory, resource, volume).into_iter().next()?;
    let target = std::fs::read_link(path).ok()?;
    let number = target.to_str()?.strip_prefix(up)?.strip_prefix("nbd")?;
    number.parse().ok()
}

/// Takes them away, as far as they lead to this device.
pub(super) fn remove(directory: &Path, resource: &str, volume: u16, index: u32) {
    for (path, up) in names(directory, resource, volume) {
        let target = std::fs::read_link(&path);
        if target.is_ok_and(|t| t == Path::new(&format!("{up}nbd{index}"))) {
            let _ = std::fs::remove_file(&path);
        }
        // The resource's own directory, if this was its last volume.
        if path.parent() != Some(directory)
            && let Some(parent) = path.parent()
        {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_with_the_device() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("twinblk");
        std::fs::write(dir.path().join("nbd7"), "seven").expect("a file");
        make(&directory, "r0", 0, 3).expect("made");
        assert_eq!(target(&directory, "r0", 0), Some(3));
        assert_eq!(target(&directory, "r0", 1), None);
        make(&directory, "r0", 0, 7).expect("made anew");
        make(&directory, "r0", 1, 8).expect("made");
        make(&directory, BY_RESOURCE, 0, 9).expect("made");
        for name in ["r0", "by-resource/r0/0"] {
            let text = std::fs::read_to_string(directory.join(name)).expect("it leads there");
            assert_eq!(text, "seven", "{name}");
        }
        assert!(directory.join("by-resource").is_dir());
        // Of a device that is not where the name leads now.
        remove(&directory, "r0", 0, 3);
        assert!(directory.join("r0").exists());
        remove(&directory, "r0", 0, 7);
        assert!(std::fs::symlink_metadata(directory.join("r0")).is_err());
        let left = |path: &str| std::fs::read_dir(directory.join(path)).map(Iterator::count);
        assert_eq!(left("by-resource/r0").expect("the other volume's"), 1);
        remove(&directory, "r0", 1, 8);
        assert!(left("by-resource/r0").is_err());
        assert_eq!(left("by-resource").expect("the other resource's"), 1);
    }
}
