//! Saves what a node gives up in a split brain, on a thread of its own: it may take as long as reading the
//! disk takes, and the resource's loop goes on answering its peer meanwhile.

use super::convert::now_ms;
use super::running::{Running, lock};
use crate::config;
use crate::discarded::format::{Header, Side};
use crate::discarded::write::{Blocks, save};
use crate::driver::mailbox::ToLoop;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use twinblk_engine::ids::{NodeId, SaveId};
use twinblk_engine::save_discarded::SaveDiscarded;
use twinblk_engine::status::SplitSide;

/// Those under way.
#[derive(Debug, Default)]
pub(crate) struct Saves(Mutex<BTreeMap<u64, Arc<AtomicBool>>>);

impl Saves {
    /// It is not needed any more.
    pub(crate) fn cancel(&self, id: SaveId) {
        if let Some(cancelled) = lock(&self.0).remove(&id.0) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// The resource has ended.
    pub(crate) fn cancel_all(&self) {
        for cancelled in std::mem::take(&mut *lock(&self.0)).into_values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// Begins to save; the loop hears what comes of it. `disk` is a copy of the loop's own descriptor, so the
/// lock on the disk is not touched.
pub(crate) fn begin(running: &Running, request: SaveDiscarded, disk: OwnedFd) {
    let config = lock(&running.config).clone();
    let (id, handle) = (request.id, running.handle.clone());
    let cancelled = Arc::new(AtomicBool::new(false));
    lock(&running.saves.0).insert(id.0, Arc::clone(&cancelled));
    let answer = handle.clone();
    let work = move || {
        let result = carry_out(&config, request, disk, &cancelled);
        // The loop may have ended.
        let _ = handle.send(ToLoop::DiscardedSaved(id, result));
    };
    let thread = std::thread::Builder::new().name("save".to_owned());
    if let Err(e) = thread.spawn(work) {
        let why = format!("no thread could be started: {e}");
        let _ = answer.send(ToLoop::DiscardedSaved(id, Err(why)));
    }
}

fn carry_out(
    config: &config::Resource,
    request: SaveDiscarded,
    disk: OwnedFd,
    cancelled: &AtomicBool,
) -> Result<String, String> {
    let file = file_of(config, &request)?;
    let header = Header {
        resource: config.name.clone(),
        volume: request.volume.0,
        device_size: request.size,
        block: request.block,
        created: now_ms() / 1000,
        victim: side(config, NodeId(config.me.id), request.here),
        kept: side(config, request.peer, request.there),
    };
    let blocks = Blocks {
        own: request.own,
        all: request.all,
    };
    save(&file, disk, &header, &blocks, cancelled)?;
    Ok(file.display().to_string())
}

/// The file that was named, or one in the configured directory.
fn file_of(config: &config::Resource, request: &SaveDiscarded) -> Result<PathBuf, String> {
    if let Some(file) = &request.file {
        return Ok(PathBuf::from(file));
    }
    let directory = config
        .save_discarded_dir()
        .ok_or("neither a file nor `save-discarded-dir` says where to")?;
    std::fs::create_dir_all(&directory)
        .map_err(|e| format!("{} cannot be made: {e}", directory.display()))?;
    let (name, volume) = (&config.name, request.volume.0);
    Ok(directory.join(format!("{name}-vol{volume}-{}.discarded", now_ms())))
}

fn side(config: &config::Resource, node: NodeId, side: SplitSide) -> Side {
    let name = config.nodes().find(|n| n.id == node.0);
    Side {
        node: node.0,
        name: name.map_or(String::new(), |n| n.name.clone()),
        current: side.current,
        base: side.base,
        changed: side.changed,
        parted_as_primary: side.parted_as_primary,
    }
}
