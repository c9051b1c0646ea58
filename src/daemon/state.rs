//! The state directory: a lock against a second daemon; `up.json`, the resources that were up, which a daemon
//! that starts again brings up, as Secondary; and `waiting-devices.json`, what the holders of kernel devices
//! that outlived their daemon know.
//!
//! Invariant: what cannot be remembered, or read, counts as the worst that it can mean.

use super::DaemonError;
use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Devices in the kernel that wait for a daemon, by resource: the generation their holders know.
const WAITING: &str = "waiting-devices.json";

/// Its holders must not go on.
pub(crate) const GIVEN_UP: u64 = 0;
/// The daemon that served it ended in order: its holders know what the disk holds when the next one starts.
pub(crate) const JUST_STOPPED: u64 = 1;

/// The directory, locked while this lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates it if needed and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DaemonError> {
        let shown = path.display();
        std::fs::create_dir_all(path).map_err(|e| {
            DaemonError::System(format!("the state directory {shown} cannot be made: {e}"))
        })?;
        let lock = File::create(path.join("lock"))
            .map_err(|e| DaemonError::System(format!("{shown} cannot be written to: {e}")))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            DaemonError::InUse(format!(
                "another twinblk daemon uses the state directory {shown}; stop it, or give this \
                 one its own with --state"
            ))
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// The resources that were up.
    pub(crate) fn were_up(&self) -> BTreeSet<String> {
        let Ok(text) = std::fs::read(self.path.join("up.json")) else {
            return BTreeSet::new();
        };
        serde_json::from_slice(&text).unwrap_or_else(|e| {
            tracing::warn!("up.json cannot be understood ({e}); no resource is brought up");
            BTreeSet::new()
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The generation that the holders of a resource's waiting device know, [`GIVEN_UP`] or
    /// [`JUST_STOPPED`], if something was remembered.
    pub(crate) fn waiting_since(&self, resource: &str) -> Option<u64> {
        match self.waiting() {
            Ok(all) => all.get(resource).copied(),
            Err(_) => Some(GIVEN_UP),
        }
    }

    fn waiting(&self) -> std::io::Result<BTreeMap<String, u64>> {
        match std::fs::read(self.path.join(WAITING)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        }
    }

    /// Remembers it, or forgets it. Answers whether that is on the disk.
    pub(crate) fn remember_waiting(&self, resource: &str, base: Option<u64>) -> bool {
        let stored = self.waiting().and_then(|old| {
            let mut all = old.clone();
            match base {
                Some(base) => all.insert(resource.to_owned(), base),
                None => all.remove(resource),
            };
            if all == old {
                return Ok(());
            }
            self.write(WAITING, &all)
        });
        if let Err(e) = &stored {
            let path = self.path.display();
            tracing::error!("{path}/{WAITING} cannot be read or written ({e})");
        }
        stored.is_ok()
    }

    /// Writes a file, atomically and for good.
    fn write(&self, name: &str, content: &impl serde::Serialize) -> std::io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_all()?;
        std::fs::rename(&new, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Remembers the resources that are up, atomically.
    pub(crate) fn remember(&self, up: &BTreeSet<String>) {
        if let Err(e) = self.write("up.json", up) {
            let path = self.path.display();
            tracing::error!(
                "{path}/up.json cannot be written ({e}): after a restart of the \
                             daemon resources must be brought up by hand"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_per_directory_and_the_list_survives() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::open(dir.path()).expect("free");
        let error = StateDir::open(dir.path()).expect_err("taken");
        assert!(error.to_string().contains("--state"), "{error}");
        let up: BTreeSet<String> = ["r0".to_string()].into();
        state.remember(&up);
        drop(state);
        assert_eq!(
            StateDir::open(dir.path()).expect("free again").were_up(),
            up
        );
    }

    #[test]
    fn what_a_device_waits_for_is_remembered_until_it_is_served() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::open(dir.path()).expect("free");
        assert_eq!(state.waiting_since("r0"), None);
        assert!(state.remember_waiting("r0", Some(u64::MAX - 1)));
        assert!(state.remember_waiting("r1", Some(2)));
        drop(state);
        let state = StateDir::open(dir.path()).expect("free again");
        assert_eq!(state.waiting_since("r0"), Some(u64::MAX - 1));
        assert!(state.remember_waiting("r0", None));
        assert_eq!(state.waiting_since("r0"), None);
        assert_eq!(state.waiting_since("r1"), Some(2));
    }

    #[test]
    fn what_cannot_be_read_or_written_is_no_permission() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::open(dir.path()).expect("free");
        std::fs::write(dir.path().join(WAITING), "{\"r0\": ").expect("half a file");
        assert_eq!(state.waiting_since("r0"), Some(GIVEN_UP));
        assert!(!state.remember_waiting("r0", Some(7)), "others' are in it");
        std::fs::remove_file(dir.path().join(WAITING)).expect("removed");
        // Root may write anywhere, but not to a file of this name.
        std::fs::create_dir(dir.path().join(format!("{WAITING}.new"))).expect("made");
        assert!(!state.remember_waiting("r0", Some(7)));
        assert_eq!(state.waiting_since("r0"), None);
    }
}
