//! What no single key shows: duplicates, missing parts, contradictions, within a file and across
//! all of them.

use super::error::{At, Problem, Spot};
use super::file::FileResource;
use super::node::FileNode;
use super::options::{DISCARD_NODE, Key};
use super::types::{Device, MetaDisk};
use super::values::{Value, show_time};
use std::collections::HashMap;
use std::hash::Hash;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use twinblk_engine::handler::HandlerKind;

/// Nodes this version can connect.
const NODES: usize = 2;

/// Checks everything that does not depend on which node this is.
pub(super) fn check_all(files: &[FileResource], problems: &mut Vec<Problem>) {
    let mut names = Seen::default();
    let mut addresses = Seen::default();
    let mut disks = Seen::default();
    let mut exports = Seen::default();
    let mut devices = Seen::default();
    for file in files {
        if let Some(name) = &file.name {
            let what = format!("resource `{}`", name.value);
            names.once(name.value.clone(), &what, &what, &name.spot, problems);
        }
        check_nodes(file, problems);
        check_times(file, problems);
        check_auto_promote(file, problems);
        check_fencing(file, problems);
        check_victim(file, problems);
        check_device_times(file, problems);
        for node in &file.nodes {
            let owner = &node.name.value;
            // A node may have the same address for all its resources, but only one node can.
            if let Some(address) = &node.address {
                let what = format!("address `{}`", address.value);
                let owner = format!("node `{owner}`");
                addresses.one_owner(
                    address.value.clone(),
                    &what,
                    &owner,
                    &address.spot,
                    problems,
                );
            }
            for disk in disks_of(node) {
                let what = format!("`{}` on node `{owner}`", disk.value.display());
                disks.once(
                    (owner.clone(), disk.value),
                    &what,
                    &what,
                    &disk.spot,
                    problems,
                );
            }
            for device in node.volumes.iter().filter_map(|v| v.device.as_ref()) {
                if device.value != Device::Auto {
                    let what = format!("device `{}` on node `{owner}`", device.value);
                    let key = (owner.clone(), device.value);
                    devices.once(key, &what, &what, &device.spot, problems);
                }
            }
            for export in &node.exports {
                let what = format!("export `{}` on node `{owner}`", export.value);
                let key = (owner.clone(), export.value.clone());
                exports.once(key, &what, &what, &export.spot, problems);
            }
        }
    }
}

/// A device exists while the node is Primary only: nobody could open it to make it so.
fn check_auto_promote(file: &FileResource, problems: &mut Vec<Problem>) {
    if file.settings.get(Key::AutoPromote) != Value::Flag(true) {
        return;
    }
    let with_device = |n: &&FileNode| n.volumes.iter().any(|v| v.device.is_some());
    let spot = file
        .written
        .iter()
        .find(|(key, _)| *key == Key::AutoPromote);
    if let (Some(node), Some((_, spot))) = (file.nodes.iter().find(with_device), spot) {
        let message = format!(
            "`auto-promote` cannot be had together with the `device` of node `{}`",
            node.name.value
        );
        let help = "the device exists on a Primary only, so that nobody could open it to make it one: \
                    remove one of the two";
        problems.push(Problem::at(spot, message).help(help));
    }
}

/// On this node, different paths must not lead to the same disk either.
pub(super) fn check_local_disks(files: &[FileResource], me: &str, problems: &mut Vec<Problem>) {
    let mut seen: HashMap<(u64, u64), At<PathBuf>> = HashMap::new();
    for node in files
        .iter()
        .flat_map(|f| &f.nodes)
        .filter(|n| n.name.value == me)
    {
        for disk in disks_of(node) {
            let Some(identity) = identity(&disk.value) else {
                continue;
            };
            match seen.get(&identity) {
                // The same path twice was reported already.
                Some(first) if first.value != disk.value => {
                    let message = format!(
                        "`{}` is the same disk as `{}` ({})",
                        disk.value.display(),
                        first.value.display(),
                        first.spot.place()
                    );
                    let help = "two volumes would overwrite each other: give each its own disk";
                    problems.push(Problem::at(&disk.spot, message).help(help));
                }
                Some(_) => {}
                None => {
                    seen.insert(identity, disk);
                }
            }
        }
    }
}

/// Device number of a block device; device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.file_type().is_block_device() {
        return Some((u64::MAX, meta.rdev()));
    }
    meta.is_file().then(|| (meta.dev(), meta.ino()))
}

/// Data and metadata disks of a node.
fn disks_of(node: &FileNode) -> Vec<At<PathBuf>> {
    let mut disks = Vec::new();
    for volume in &node.volumes {
        disks.push(volume.disk.clone());
        if let MetaDisk::External(path) = &volume.meta.value {
            disks.push(At {
                value: path.clone(),
                spot: volume.meta.spot.clone(),
            });
        }
    }
    disks
}

fn check_nodes(file: &FileResource, problems: &mut Vec<Problem>) {
    let mut ids = Seen::default();
    let mut addresses = Seen::default();
    for node in &file.nodes {
        let owner = format!("node `{}`", node.name.value);
        if let Some(id) = &node.id {
            ids.once(
                id.value,
                &format!("id {}", id.value),
                &owner,
                &id.spot,
                problems,
            );
        }
        if let Some(address) = &node.address {
            let what = format!("address `{}`", address.value);
            addresses.once(
                address.value.clone(),
                &what,
                &owner,
                &address.spot,
                problems,
            );
        }
        check_volumes(node, problems);
    }
    let count = file.nodes.len();
    if count > NODES {
        let mut nodes: Vec<_> = file.nodes.iter().map(|n| &n.name).collect();
        nodes.sort_by(|a, b| a.spot.cmp(&b.spot));
        let message = format!("this version connects two nodes; this resource has {count}");
        let help = "keep the two that shall hold the data";
        problems.push(Problem::at(&nodes[NODES].spot, message).help(help));
    }
    if count < NODES {
        let message = match count {
            0 => "the resource has no nodes".to_owned(),
            _ => format!(
                "the resource has only one node, `{}`",
                file.nodes[0].name.value
            ),
        };
        let help = "a resource is mirrored between two nodes: add [node.NAME] for each, \
                    with id, address, disk and export";
        let problem = match &file.name {
            Some(name) => Problem::at(&name.spot, message),
            None => Problem::with(&file.file, message),
        };
        problems.push(problem.help(help));
    }
}

fn check_volumes(node: &FileNode, problems: &mut Vec<Problem>) {
    for volume in node.volumes.iter().filter(|v| v.number.value != 0) {
        let message = "this version mirrors one volume per resource, number 0";
        let help = "make another resource of it, in a file of its own";
        problems.push(Problem::at(&volume.number.spot, message).help(help));
    }
}

/// A peer that is lost could not be fenced, and clients would wait for ever.
fn check_fencing(file: &FileResource, problems: &mut Vec<Problem>) {
    let policy = file.settings.get(Key::Fencing);
    if policy == Value::Word("dont-care") || file.handlers.set().has(HandlerKind::FencePeer) {
        return;
    }
    let written = file.written.iter().find(|(k, _)| *k == Key::Fencing);
    if let Some((_, spot)) = written {
        let message = format!("`fencing = {policy}` needs the handler `fence-peer`");
        let help =
            "add it to [handlers], or leave `fencing` at \"dont-care\"; see docs/handlers.md";
        problems.push(Problem::at(spot, message).help(help));
    }
}

fn check_times(file: &FileResource, problems: &mut Vec<Problem>) {
    let (timeout, ping) = (
        file.settings.time(Key::Timeout),
        file.settings.time(Key::PingInt),
    );
    if timeout < ping {
        return;
    }
    let spot = |key| {
        file.written
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, spot)| spot)
    };
    let Some(spot) = spot(Key::Timeout).or_else(|| spot(Key::PingInt)) else {
        return;
    };
    let message = format!(
        "`timeout` ({}) must be below `ping-int` ({})",
        show_time(timeout),
        show_time(ping)
    );
    let help = "numbers without a unit are seconds; DRBD counts `timeout` and `ping-timeout` in \
                tenths of a second: its 60 is \"6s\" here";
    problems.push(Problem::at(spot, message).help(help));
}

/// A policy that names a node names one there is.
fn check_victim(file: &FileResource, problems: &mut Vec<Problem>) {
    let Value::Word(word) = file.settings.get(Key::AfterSb0Pri) else {
        return;
    };
    let Some(name) = word.strip_prefix(DISCARD_NODE) else {
        return;
    };
    let known: Vec<&str> = file.nodes.iter().map(|n| n.name.value.as_str()).collect();
    let written = file.written.iter().find(|(k, _)| *k == Key::AfterSb0Pri);
    if let (false, Some((_, spot))) = (known.contains(&name), written) {
        let message = format!("`after-sb-0pri` names the node `{name}`, which does not exist");
        let help = format!("the nodes are: {}", known.join(", "));
        problems.push(Problem::at(spot, message).help(help));
    }
}

/// A write waits until a peer that is lost is given up. If that takes longer than the kernel device waits, its
/// users get an error where they only have to wait.
fn check_device_times(file: &FileResource, problems: &mut Vec<Problem>) {
    let mut volumes = file.nodes.iter().flat_map(|node| &node.volumes);
    if !volumes.any(|volume| volume.device.is_some()) {
        return;
    }
    let time = |key| file.settings.time(key);
    let waits = time(Key::DeviceTimeout) + time(Key::DeviceDeadTimeout);
    let count = u32::try_from(file.settings.number(Key::KoCount)).unwrap_or(u32::MAX);
    let ways = [
        (
            time(Key::PingInt) + time(Key::PingTimeout),
            "`ping-int` and `ping-timeout`",
            [Key::PingInt, Key::PingTimeout],
        ),
        (
            time(Key::Timeout).saturating_mul(count),
            "`timeout` times `ko-count`",
            [Key::Timeout, Key::KoCount],
        ),
    ];
    for (lost, way, keys) in ways {
        if waits > lost {
            continue;
        }
        let keys = [Key::DeviceDeadTimeout, Key::DeviceTimeout]
            .into_iter()
            .chain(keys);
        let written = keys
            .filter_map(|key| file.written.iter().find(|(k, _)| *k == key))
            .next();
        let Some((_, spot)) = written else { continue };
        let message = format!(
            "`device-timeout` and `device-dead-timeout` together ({}) must be longer than it takes to give up \
             a lost peer ({}: {way})",
            show_time(waits),
            show_time(lost)
        );
        let help = "a write waits for that, and the kernel would fail it: make `device-dead-timeout` longer";
        problems.push(Problem::at(spot, message).help(help));
        return;
    }
}

/// Values that may be used once, with who used them where.
struct Seen<K>(HashMap<K, (String, Spot)>);

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Seen<K> {
    fn once(&mut self, key: K, what: &str, owner: &str, spot: &Spot, problems: &mut Vec<Problem>) {
        match self.0.get(&key) {
            None => {
                self.0.insert(key, (owner.to_owned(), spot.clone()));
            }
            Some((_, first)) if first == spot => {}
            Some((other, first)) => {
                let who = if other == what {
                    String::new()
                } else {
                    format!(" by {other}")
                };
                let message = format!("{what} is already used{who}");
                let help = format!("first used at {}", first.place());
                problems.push(Problem::at(spot, message).help(help));
            }
        }
    }

    /// Like `once`, but the same owner may use it again.
    fn one_owner(
        &mut self,
        key: K,
        what: &str,
        owner: &str,
        spot: &Spot,
        problems: &mut Vec<Problem>,
    ) {
        // Twice in one file is reported with that file's nodes.
        let again = |(first, at): &(String, Spot)| first == owner || at.file == spot.file;
        if !self.0.get(&key).is_some_and(again) {
            self.once(key, what, owner, spot, problems);
        }
    }
}
