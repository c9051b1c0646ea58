//! What `adjust` has to do when a resource's file has changed.

use super::options::{OPTIONS, Section};
use super::types::{Export, Node, Resource};
use std::fmt;

/// How a change reaches a running resource. Ordered by how much it disturbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// At once.
    Live,
    /// With the next connection: disconnect, connect.
    NeedsReconnect,
    /// With the next start: down, up.
    NeedsDownUp,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "at once",
            Self::NeedsReconnect => "with the next connection (disconnect, connect)",
            Self::NeedsDownUp => "with the next start (down, up)",
        })
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// `net.ping-int`, `node.alpha.disk`.
    pub(crate) path: String,
    /// As in the file.
    pub(crate) old: String,
    /// As in the file.
    pub(crate) new: String,
    /// How it reaches a running resource.
    pub(crate) how: How,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} -> {}, {}",
            self.path, self.old, self.new, self.how
        )
    }
}

/// The differences between the running resource `old` and the one in the file, `new`. Both have
/// the same name.
pub(crate) fn diff(old: &Resource, new: &Resource) -> Vec<Change> {
    let mut changes = Changes(Vec::new());
    for section in Section::ALL {
        for row in OPTIONS.iter().filter(|row| row.section == section) {
            let (a, b) = (old.settings.get(row.key), new.settings.get(row.key));
            let path = format!("{}.{}", section.name(), row.name);
            changes.note(path, a.to_string(), b.to_string(), row.change);
        }
    }
    changes.0.extend(old.handlers.diff(&new.handlers));
    if old.secret != new.secret {
        let (path, hidden) = ("resource.shared-secret".to_owned(), "…".to_owned());
        let how = How::NeedsReconnect;
        changes.0.push(Change {
            path,
            old: hidden.clone(),
            new: "… (another)".to_owned(),
            how,
        });
    }
    changes.note(
        "this node".to_owned(),
        old.me.name.clone(),
        new.me.name.clone(),
        How::NeedsDownUp,
    );
    for node in old.nodes() {
        match new.node(&node.name) {
            Some(other) => changes.nodes(node, other, node.name == old.me.name),
            None => changes.note(
                path_of(node, ""),
                "there".into(),
                "gone".into(),
                How::NeedsDownUp,
            ),
        }
    }
    for node in new.nodes().filter(|n| old.node(&n.name).is_none()) {
        changes.note(
            path_of(node, ""),
            "not there".into(),
            "there".into(),
            How::NeedsDownUp,
        );
    }
    changes.0
}

fn path_of(node: &Node, key: &str) -> String {
    format!(
        "node.{}{}{key}",
        node.name,
        if key.is_empty() { "" } else { "." }
    )
}

struct Changes(Vec<Change>);

impl Changes {
    fn note(&mut self, path: String, old: String, new: String, how: How) {
        if old != new {
            self.0.push(Change {
                path,
                old,
                new,
                how,
            });
        }
    }

    fn nodes(&mut self, old: &Node, new: &Node, me: bool) {
        self.note(
            path_of(old, "id"),
            old.id.to_string(),
            new.id.to_string(),
            How::NeedsDownUp,
        );
        let how = if me {
            How::NeedsDownUp
        } else {
            How::NeedsReconnect
        };
        let (a, b) = (old.address.to_string(), new.address.to_string());
        self.note(path_of(old, "address"), a, b, how);
        // What a peer does with its disks and exports is its own affair.
        if !me {
            return;
        }
        let list = |exports: &[Export]| {
            exports
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (a, b) = (list(&old.exports), list(&new.exports));
        self.note(path_of(old, "export"), a, b, How::NeedsDownUp);
        for number in old.volumes.iter().chain(&new.volumes).map(|v| v.number) {
            let find = |node: &Node| {
                let volume = node.volumes.iter().find(|v| v.number == number)?;
                let device = volume.device.map_or("none".into(), |d| d.to_string());
                Some((
                    volume.disk.display().to_string(),
                    volume.meta.to_string(),
                    device,
                ))
            };
            let none = || ("none".to_owned(), "none".to_owned(), "none".to_owned());
            let (a, b) = (
                find(old).unwrap_or_else(none),
                find(new).unwrap_or_else(none),
            );
            let before = self.0.len();
            self.note(path_of(old, "disk"), a.0, b.0, How::NeedsDownUp);
            self.note(path_of(old, "meta-disk"), a.1, b.1, How::NeedsDownUp);
            self.note(path_of(old, "device"), a.2, b.2, How::NeedsDownUp);
            if number != 0 {
                for change in &mut self.0[before..] {
                    change.path = format!("{} (volume {number})", change.path);
                }
            }
        }
        self.0.dedup();
    }
}
