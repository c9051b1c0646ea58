//! The state directory: a lock against a second daemon, and `up.json`, the resources that were up. A
//! daemon that starts again brings them up, as Secondary.

use super::DaemonError;
use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Devices in the kernel that wait for a daemon, by resource: the generation their holders know.
const WAITING: &str = "waiting-devices.json";

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

    /// The generation that the holders of a resource's waiting device know, if it was remembered.
    pub(crate) fn waiting_since(&self, resource: &str) -> Option<u64> {
        self.waiting().get(resource).copied()
    }

    fn waiting(&self) -> BTreeMap<String, u64> {
        let text = std::fs::read(self.path.join(WAITING)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Remembers it, or forgets it.
    pub(crate) fn remember_waiting(&self, resource: &str, base: Option<u64>) {
        let old = self.waiting();
        let mut all = old.clone();
        match base {
            Some(base) => all.insert(resource.to_owned(), base),
            None => all.remove(resource),
        };
        if all == old {
            return;
        }
        if let Err(e) = self.write(WAITING, &all) {
            let path = self.path.display();
            tracing::error!("{path}/{WAITING} cannot be written ({e})");
        }
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
        state.remember_waiting("r0", Some(u64::MAX - 1));
        state.remember_waiting("r1", Some(2));
        drop(state);
        let state = StateDir::open(dir.path()).expect("free again");
        assert_eq!(state.waiting_since("r0"), Some(u64::MAX - 1));
        state.remember_waiting("r0", None);
        assert_eq!(state.waiting_since("r0"), None);
        assert_eq!(state.waiting_since("r1"), Some(2));
    }
}
