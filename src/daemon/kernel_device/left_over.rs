//! The device of a resource that is not up: its loop has ended by an error, or it cannot be brought up.
//! `up` serves it again, `down` takes it away, `status` names it.

use super::orders::{disconnect, holders_of, ordered};
use super::{backend, links, sysfs, trouble};
use crate::api::ErrorBody;
use crate::config;
use crate::daemon::state::{GIVEN_UP, StateDir};
use crate::daemon::supervisor::error;
use std::path::Path;
use trouble::Trouble;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOver {
    resource: String,
    volume: u16,
    backend: String,
    index: u32,
}

impl LeftOver {
    /// Looks for it in the kernel; also for that of a volume that is to have none any more.
    pub(crate) fn find(config: &config::Resource, store: &StateDir) -> Option<Self> {
        Self::find_in(Path::new(sysfs::BLOCK), config, store)
    }

    fn find_in(block: &Path, config: &config::Resource, store: &StateDir) -> Option<Self> {
        config.me.volumes.iter().find_map(|volume| {
            let backend = backend(config, volume.number, store);
            Some(Self {
                resource: config.name.clone(),
                volume: volume.number,
                index: sysfs::find(block, &backend)?,
                backend,
            })
        })
    }

    /// N of /dev/nbdN.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// For `status`.
    pub(crate) fn text(&self) -> String {
        let (index, resource) = (self.index, &self.resource);
        format!(
            "/dev/nbd{index} is still in the kernel, and nobody serves it: I/O waits, up to \
             device-dead-timeout; `twinblk up {resource}` may serve it again, `twinblk down \
             {resource}` detaches it"
        )
    }

    /// Ends it, unless somebody holds it; by force in any case. Answers in words.
    pub(crate) async fn end(self, store: &StateDir, force: bool) -> Result<String, ErrorBody> {
        let index = self.index;
        if !force {
            let holders = holders_of(index).await;
            if !holders.is_empty() {
                return Err(trouble::in_use(index, &holders));
            }
        }
        let backend = self.backend;
        let gone = ordered(move || disconnect(index, &backend, None)).await;
        let gone = gone.map_err(|e| {
            let trouble = Trouble::of_order(index, e);
            error("device", 10, trouble.reason(), &trouble.way_out())
        })?;
        // One that stays until its last holder has closed it is not to be taken up again.
        store.remember_waiting(&self.resource, (!gone).then_some(GIVEN_UP));
        let directory = Path::new(links::DIRECTORY);
        links::remove(directory, &self.resource, self.volume, index);
        Ok(format!(
            "/dev/nbd{index}, which was left in the kernel, is detached"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_by_whose_it_is() {
        let kit = crate::daemon::fake_loop::Kit::new();
        let config = kit.supervisor.configured("r0").expect("it is configured");
        let other = kit.supervisor.configured("r1").expect("it is configured");
        let store = &kit.supervisor.state;
        let block = tempfile::tempdir().expect("a directory");
        let device = block.path().join("nbd3");
        std::fs::create_dir(&device).expect("a directory");
        let text = format!("{}\n", backend(&config, 0, store));
        std::fs::write(device.join("backend"), text).expect("a file");
        let found = LeftOver::find_in(block.path(), &config, store).expect("it is there");
        assert_eq!(found.index, 3);
        assert!(found.text().contains("/dev/nbd3") && found.text().contains("down r0"));
        assert_eq!(LeftOver::find_in(block.path(), &other, store), None);
    }
}
