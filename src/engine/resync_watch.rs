//! A resync that does not get on is no secret: it is an event, with the reason, and another one when
//! it goes on. (Resources that stand in SyncTarget for ever without a word are an old complaint.)

use crate::event::{ReplState, Severity};
use crate::resource::Resource;
use crate::time::{Duration, Instant};
use alloc::format;
use alloc::string::{String, ToString};

/// Without any progress for so long, a resync is reported.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a resync had done when it was looked at last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    left: u64,
    since: Instant,
    reported: bool,
}

impl Watch {
    pub(crate) fn new(now: Instant, left: u64) -> Self {
        Self {
            left,
            since: now,
            reported: false,
        }
    }
}

impl Resource {
    /// Looks at every running resync with this peer.
    pub(crate) fn watch_tick(&mut self, p: usize) {
        let node = self.peers[p].node;
        for v in 0..self.volumes.len() {
            let left = self.volumes[v].out_of_sync(node);
            let now = self.now;
            let Some(resync) = &mut self.peers[p].volumes[v].resync else {
                continue;
            };
            let watch = &mut resync.watch;
            if watch.left != left {
                let reported = watch.reported;
                *watch = Watch::new(now, left);
                if reported {
                    let id = self.volumes[v].id;
                    let text = format!("the resync of {id} goes on: {left} bytes are left");
                    self.incident(Severity::Info, text);
                }
            } else if !watch.reported && now.since(watch.since) >= PATIENCE {
                watch.reported = true;
                let why = self.why_no_progress(p, v);
                let id = self.volumes[v].id;
                let text = format!(
                    "the resync of {id} has made no progress for {PATIENCE:?}, {left} bytes are left: \
                     {why}"
                );
                self.incident(Severity::Warning, text);
            }
        }
    }

    /// When [`Self::watch_tick`] has something to do.
    pub(crate) fn watch_deadline(&self, p: usize) -> Option<Instant> {
        let due = |w: &Watch| (!w.reported).then_some(w.since + PATIENCE);
        self.peers[p]
            .volumes
            .iter()
            .filter_map(|v| due(&v.resync.as_ref()?.watch))
            .min()
    }

    /// Since when a resync stands still, if that was reported, and why.
    pub(crate) fn standstill(&self, p: usize, v: usize) -> Option<(Instant, String)> {
        let watch = &self.peers[p].volumes[v].resync.as_ref()?.watch;
        watch
            .reported
            .then(|| (watch.since, self.why_no_progress(p, v)))
    }

    fn why_no_progress(&self, p: usize, v: usize) -> String {
        let peer = &self.peers[p];
        let name = &peer.name;
        let Some(resync) = &peer.volumes[v].resync else {
            return String::new();
        };
        if peer.volumes[v].replication == ReplState::SyncTarget {
            return if resync.is_adopting() {
                "its end is on its way to this node's disk".to_string()
            } else {
                format!("nothing comes from {name}; ask there (`twinblk why RES`)")
            };
        }
        let (in_flight, ended) = resync.under_way();
        if ended {
            format!("{name} has not confirmed the end of it")
        } else if peer.unsent() > 0 {
            format!(
                "{name} does not take what is sent: {} bytes are queued",
                peer.unsent()
            )
        } else if in_flight > 0 {
            format!(
                "{in_flight} bytes are being read here, or wait for a client's write to the same \
                 place, or are not confirmed by {name}'s disk"
            )
        } else {
            "nothing is under way".to_string()
        }
    }
}
