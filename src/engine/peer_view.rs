//! What each end sees of the other, exchanged: so that `status` can show both views, and say so when
//! they disagree and stay that way (one side resyncs and the other believes itself in step, and the
//! like). It decides nothing.
//!
//! A view is told when it has changed, at most once a second; an idle pair exchanges none.

use crate::event::{ReplState, Severity};
use crate::output::Channel;
use crate::resource::Resource;
use crate::time::{Duration, Instant};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use twinblk_protocol::control::{Message, View, VolumeView};

/// Shortest time between two views told to a peer.
const INTERVAL: Duration = Duration::from_secs(1);
/// Views that differ for less are on their way to one another.
const PATIENCE: Duration = Duration::from_secs(5);

/// The two views of one connection.
#[derive(Debug, Default)]
pub(crate) struct Views {
    /// What the peer was told, and when.
    told: Option<(View, Instant)>,
    /// What the peer sees.
    heard: Option<View>,
    /// Since when they do not match, in what, and whether that was reported.
    differ: Option<(Instant, String, bool)>,
}

impl Views {
    /// What the peer sees of a volume.
    pub(crate) fn of_volume(&self, volume: u16) -> Option<VolumeView> {
        let heard = self.heard.as_ref()?;
        heard.volumes.iter().find(|v| v.volume == volume).cloned()
    }

    /// How the views disagree, once that is no matter of time.
    pub(crate) fn disagreement(&self, now: Instant) -> Option<&str> {
        let (since, text, _) = self.differ.as_ref()?;
        (now.since(*since) >= PATIENCE).then_some(text)
    }
}

impl Resource {
    fn view_of(&self, p: usize, v: usize) -> VolumeView {
        let pv = &self.peers[p].volumes[v];
        VolumeView {
            volume: pv.id.0,
            replication: pv.replication,
            disk: pv.disk,
            out_of_sync: self.volumes[v].out_of_sync(self.peers[p].node),
        }
    }

    /// Without memory: it is asked in every turn.
    fn view_is_told(&self, p: usize) -> bool {
        let peer = &self.peers[p];
        peer.views.told.as_ref().is_some_and(|(told, _)| {
            told.role == peer.role
                && (0..peer.volumes.len()).all(|v| told.volumes.get(v) == Some(&self.view_of(p, v)))
        })
    }

    /// Tells the peer what this node sees of it, and looks whether it sees the same.
    pub(crate) fn view_tick(&mut self, p: usize) {
        if !self.peers[p].is_agreed() || self.peers[p].is_parked() {
            return;
        }
        let due = match &self.peers[p].views.told {
            Some((_, at)) => self.now.since(*at) >= INTERVAL,
            None => true,
        };
        if due && !self.view_is_told(p) {
            let volumes: Vec<VolumeView> = (0..self.volumes.len())
                .map(|v| self.view_of(p, v))
                .collect();
            let role = self.peers[p].role;
            let view = View { role, volumes };
            self.send_message(p, Channel::Data, &Message::View(view.clone()));
            self.peers[p].views.told = Some((view, self.now));
        }
        self.compare_views(p);
    }

    /// When [`Self::view_tick`] has something to do.
    pub(crate) fn view_deadline(&self, p: usize) -> Option<Instant> {
        let peer = &self.peers[p];
        if !peer.is_agreed() || peer.is_parked() {
            return None;
        }
        let tell = (!self.view_is_told(p)).then(|| match &peer.views.told {
            Some((_, at)) => *at + INTERVAL,
            None => self.now,
        });
        let report = match &peer.views.differ {
            Some((since, _, false)) => Some(*since + PATIENCE),
            _ => None,
        };
        [tell, report].into_iter().flatten().min()
    }

    /// The peer's view came.
    pub(crate) fn view_received(&mut self, p: usize, view: View) {
        self.peers[p].views.heard = Some(view);
        self.compare_views(p);
    }

    fn compare_views(&mut self, p: usize) {
        // With three nodes and more, a resync that waits for another one looks different from both ends.
        let now = self.disagreement_now(p).filter(|_| !self.is_group());
        let name = self.peers[p].name.clone();
        let at = self.now;
        let differ = &mut self.peers[p].views.differ;
        let report = match (now, differ) {
            (None, differ) => {
                let reported = differ.take().is_some_and(|(_, _, reported)| reported);
                reported.then(|| (Severity::Info, format!("this node and {name} agree again")))
            }
            (Some(text), differ @ None) => {
                *differ = Some((at, text, false));
                None
            }
            (Some(text), Some((since, told, reported))) => {
                *told = text;
                let due = !*reported && at.since(*since) >= PATIENCE;
                *reported |= due;
                due.then(|| (Severity::Warning, format!("the two ends disagree: {told}")))
            }
        };
        if let Some((severity, text)) = report {
            self.incident(severity, text);
        }
    }

    fn disagreement_now(&self, p: usize) -> Option<String> {
        let peer = &self.peers[p];
        let theirs = peer.views.heard.as_ref()?;
        if !peer.is_agreed() || peer.is_parked() {
            return None;
        }
        let (me, name) = (&self.cfg.me.name, &peer.name);
        if theirs.role != self.role {
            return Some(format!(
                "{me} is {:?}, and {name} takes it for {:?}",
                self.role, theirs.role
            ));
        }
        for (v, pv) in peer.volumes.iter().enumerate() {
            let Some(view) = theirs.volumes.iter().find(|t| t.volume == pv.id.0) else {
                continue;
            };
            if view.replication != mirrored(pv.replication) {
                return Some(format!(
                    "{} is {:?} here and {:?} on {name}",
                    pv.id, pv.replication, view.replication
                ));
            }
            let disk = self.volumes[v].disk;
            if view.disk != disk {
                return Some(format!(
                    "{} is {disk:?} here, and {name} takes it for {:?}",
                    pv.id, view.disk
                ));
            }
        }
        None
    }
}

/// What the other end of a connection in this state must show.
fn mirrored(state: ReplState) -> ReplState {
    use ReplState::{
        Ahead, Behind, Established, Off, PausedSyncS, PausedSyncT, StartingSyncS, StartingSyncT,
        SyncSource, SyncTarget, VerifyS, VerifyT, WFBitMapS, WFBitMapT, WFSyncUUID,
    };
    match state {
        Off => Off,
        Established => Established,
        StartingSyncS => StartingSyncT,
        StartingSyncT => StartingSyncS,
        WFBitMapS => WFBitMapT,
        WFBitMapT => WFBitMapS,
        WFSyncUUID => WFSyncUUID,
        SyncSource => SyncTarget,
        SyncTarget => SyncSource,
        PausedSyncS => PausedSyncT,
        PausedSyncT => PausedSyncS,
        VerifyS => VerifyT,
        VerifyT => VerifyS,
        Ahead => Behind,
        Behind => Ahead,
    }
}
