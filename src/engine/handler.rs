//! Handlers: the administrator's programs that are told of something, and of which some decide.
//!
//! The engine asks for a run ([`Output::Handler`]) and goes on; the control plane runs the program
//! with a time limit and tells what came of it ([`crate::input::Input::HandlerDone`]). A program that
//! is missing, hangs or dies is an answer too: no change, and it is stated. Every run is an event.

use crate::event::{ConnState, Severity};
use crate::ids::{HandlerId, NodeId, VolumeId};
use crate::output::Output;
use crate::resource::Resource;
use crate::slots::Key;
use alloc::format;
use alloc::string::String;

/// Which handler; the names are DRBD's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HandlerKind {
    /// Make sure that the peer cannot serve its copy. Its exit code decides.
    FencePeer,
    /// The peer is up to date again: what `fence-peer` did may be undone.
    UnfencePeer,
    /// A split brain was found, and no policy resolves it.
    SplitBrain,
    /// A split brain was found, whatever becomes of it.
    InitialSplitBrain,
    /// This node is about to be overwritten by a resync. Any exit code but 0 ends the connection.
    BeforeResyncTarget,
    /// A resync of this node is over, whatever came of it.
    AfterResyncTarget,
    /// This node's disk failed, and `on-io-error` is `call-local-io-error`.
    LocalIoError,
    /// This node is Primary and has lost access to any current copy.
    PriOnInconDegr,
    /// This node is Primary, and `rr-conflict` gave up its copy.
    PriLost,
    /// This node is Primary, and a split-brain policy gave up its copy.
    PriLostAfterSb,
    /// A verify found differences.
    OutOfSync,
}

impl HandlerKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::FencePeer,
        Self::UnfencePeer,
        Self::SplitBrain,
        Self::InitialSplitBrain,
        Self::BeforeResyncTarget,
        Self::AfterResyncTarget,
        Self::LocalIoError,
        Self::PriOnInconDegr,
        Self::PriLost,
        Self::PriLostAfterSb,
        Self::OutOfSync,
    ];

    /// Its name in the configuration, and the first argument of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::FencePeer => "fence-peer",
            Self::UnfencePeer => "unfence-peer",
            Self::SplitBrain => "split-brain",
            Self::InitialSplitBrain => "initial-split-brain",
            Self::BeforeResyncTarget => "before-resync-target",
            Self::AfterResyncTarget => "after-resync-target",
            Self::LocalIoError => "local-io-error",
            Self::PriOnInconDegr => "pri-on-incon-degr",
            Self::PriLost => "pri-lost",
            Self::PriLostAfterSb => "pri-lost-after-sb",
            Self::OutOfSync => "out-of-sync",
        }
    }
}

/// The handlers that are configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HandlerSet(u16);

impl HandlerSet {
    /// With `kind`.
    #[must_use]
    pub fn with(self, kind: HandlerKind) -> Self {
        Self(self.0 | 1 << kind as u16)
    }

    /// Whether it is configured.
    pub fn has(self, kind: HandlerKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerResult {
    /// It ended with this exit code.
    Exited(i32),
    /// It could not be started, was killed, or took too long: in words.
    Broken(String),
}

/// What is to be done with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing: it was told, no more.
    Nothing,
    /// The peers are told that a disk has failed.
    DiskFailed(VolumeId),
    /// It was to fence the peer: the number of the run.
    Fence(u64),
    /// It allows the resync onto this node's disk, or does not: number of the link.
    BeforeResync(u64),
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kind: HandlerKind,
    pub(crate) peer: Option<NodeId>,
    pub(crate) then: Then,
}

impl Resource {
    /// Has a handler run, if there is one. Answers whether there is; if not, `then` is never done and
    /// the caller decides what that means.
    pub(crate) fn call_handler(
        &mut self,
        kind: HandlerKind,
        peer: Option<usize>,
        volume: Option<VolumeId>,
        then: Then,
    ) -> bool {
        if !self.cfg.options.handlers.has(kind) {
            return false;
        }
        let peer = peer.map(|p| self.peers[p].node);
        let id = HandlerId(self.handlers.insert(Call { kind, peer, then }).raw());
        self.out.push(Output::Handler {
            id,
            kind,
            peer,
            volume,
        });
        true
    }

    /// A handler ended.
    pub(crate) fn handler_done(&mut self, id: HandlerId, result: &HandlerResult) {
        let Some(call) = self.handlers.remove(Key::from_raw(id.0)) else {
            return;
        };
        let peer = call
            .peer
            .and_then(|node| self.peers.iter().position(|p| p.node == node));
        match (call.then, peer) {
            (Then::Fence(run), Some(p)) => self.fence_answered(p, run, result),
            (Then::BeforeResync(link), Some(p)) => self.before_resync_done(p, link, result),
            (Then::DiskFailed(volume), _) => self.disk_handler_ended(volume),
            _ => {
                if let HandlerResult::Broken(why) = result {
                    let text = format!("the handler {} {why}; nothing follows", call.kind.name());
                    self.incident(Severity::Warning, text);
                }
            }
        }
    }

    /// Whether the resync onto this disk may begin: the handler `before-resync-target` is asked, once per
    /// connection.
    pub(crate) fn resync_allowed(&mut self, p: usize) -> bool {
        let Some(link) = &mut self.peers[p].link else {
            return false;
        };
        if let Some(allowed) = link.before_resync {
            return allowed;
        }
        link.before_resync = Some(false);
        let then = Then::BeforeResync(link.number);
        let asked = self.call_handler(HandlerKind::BeforeResyncTarget, Some(p), None, then);
        if let (false, Some(link)) = (asked, &mut self.peers[p].link) {
            link.before_resync = Some(true);
        }
        !asked
    }

    /// `before-resync-target` has ended. Whoever prepares a resync (by a snapshot) and fails must not be
    /// passed over, and must not be asked again and again either.
    fn before_resync_done(&mut self, p: usize, number: u64, result: &HandlerResult) {
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        if link.number != number {
            return;
        }
        let why = match result {
            HandlerResult::Exited(0) => {
                link.before_resync = Some(true);
                return self.sync_start_progress(p);
            }
            HandlerResult::Exited(code) => format!("exit code {code}"),
            HandlerResult::Broken(why) => why.clone(),
        };
        let text = format!(
            "the handler before-resync-target refused the resync onto this node ({why}); when it is \
             mended: `twinblk connect RES`"
        );
        self.incident(Severity::Error, text.clone());
        self.peers[p].want = false;
        self.close_link(p, ConnState::StandAlone, text);
    }
}
