//! The state directory: a lock against a second daemon, and `up.json`, the resources that were up. A
//! daemon that starts again brings them up, as Secondary.

use super::DaemonError;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

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

    /// Remembers the resources that are up, atomically.
    pub(crate) fn remember(&self, up: &BTreeSet<String>) {
        let new = self.path.join("up.json.new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(up)?)?;
            file.sync_all()?;
            std::fs::rename(&new, self.path.join("up.json"))?;
            File::open(&self.path)?.sync_all()
        };
        if let Err(e) = write() {
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
}
