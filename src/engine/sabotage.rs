//! Deliberate mistakes, one at a time, to prove that the simulation notices them. They exist only in a
//! build with `--cfg sabotage` (never a cargo feature: features unify over a workspace and would
//! reach the daemon); in every other build [`is`] is `false` at compile time.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mistake {
    /// A write under B or C is answered before the peer has it.
    AckBeforePeer = 1,
    /// Unconfirmed writes are not marked when the link is lost.
    ForgetLogOnDisconnect,
    /// Overlapping writes are not held back.
    NoOverlapLock,
    /// A resync reads without regard to writes that are under way.
    ResyncIgnoresWrites,
    /// The peer does not hold writes behind an ordered barrier.
    IgnoreOrderedBarrier,
    /// The peer confirms a barrier without flushing.
    AckBarrierUnflushed,
    /// After the crash of a Primary under A or B the other side is the source.
    InvertCrashedPrimary,
    /// A write without the peer begins no new generation.
    NoNewGeneration,
    /// Who is Primary is not asked before a promotion.
    PromoteWithoutAsking,
    /// The superblock is always written to the same place.
    SuperblockInPlace,
    /// A resync goes on where an earlier one stopped, and ends at the end of the device.
    ResumeFromStalePosition,
    /// A flush does not wait for the peer.
    FlushAlone,
    /// A Secondary is promoted before what a lost Primary sent is on its disk.
    PromoteBeforeDrained,
    /// A disk that failed goes on taking metadata.
    CommitAfterFailure,
    /// A crashed Primary marks nothing, whatever its activity log says.
    ForgetCrash,
    /// What a demotion leaves marked is not written to the disk.
    DemoteWithoutBitmap,
    /// A write starts before the activity log on the disk names its extents.
    SkipLogCommit,
    /// An extent is forgotten before its marks are on the disk.
    ForgetExtentWithoutBitmap,
    /// An extent is forgotten before its data are stable on the own disk.
    ForgetExtentUnflushed,
    /// An extent is given back when the peer acknowledges a write, not when it is stable there.
    ReleaseExtentAtAck,
    /// Of three nodes: a new generation is relied upon before the other peer has it.
    RelyOnUntoldGeneration,
    /// What may have reached only some when the Primary was lost is not marked.
    ForgetUnsettled,
    /// A Secondary does not mark for a third node what the Primary does not send it.
    NoMarksForThird,
    /// What a resync changed is not marked for a third node.
    ResyncNotMarkedForThird,
    /// A survivor of a lost Primary takes its copy for current before it has met the others.
    SurvivorWithoutDoubt,
    /// Two promotions are agreed to at once.
    GrantTwice,
    /// With more than two nodes, a peer once known to be behind is taken to be so for ever.
    BehindForEver,
    /// Of three nodes: two sources bring one target up to date at the same time.
    TwoSources,
    /// A resync's bits fall when the target has written a block, not when it is stable there.
    BitsBeforeStable,
    /// A Primary without a disk relies on a generation that the peer has not confirmed.
    ServeUnconfirmed,
    /// A Primary without a disk is served from a copy of another generation.
    ServeOtherGeneration,
    /// A Primary whose copy is being brought up to date reads from it.
    ReadStaleCopy,
    /// A block of a resync that a write of the target has overtaken is not sent again.
    ForgetOvertaken,
    /// A split-brain policy picks the other victim on one of the two nodes.
    PolicyPicksTheOther,
    /// Under a fencing policy a node is promoted beside a lost peer that nobody has fenced.
    PromoteUnfenced,
    /// Frozen I/O goes on although the handler has failed.
    ThawUnfenced,
    /// That a peer is Outdated is not taken back when it is met again.
    KeepOutdatedMark,
    /// A peer is fenced for a copy that was asleep while that peer may have gone on.
    FenceForSlept,
    /// A copy that is about to be brought up to date passes for current until it is overwritten.
    CurrentUntilOverwritten,
}

impl Mistake {
    /// Those that two nodes notice.
    pub const ALL: [Self; 31] = [
        Self::AckBeforePeer,
        Self::ForgetLogOnDisconnect,
        Self::NoOverlapLock,
        Self::ResyncIgnoresWrites,
        Self::IgnoreOrderedBarrier,
        Self::AckBarrierUnflushed,
        Self::InvertCrashedPrimary,
        Self::NoNewGeneration,
        Self::PromoteWithoutAsking,
        Self::SuperblockInPlace,
        Self::ResumeFromStalePosition,
        Self::FlushAlone,
        Self::PromoteBeforeDrained,
        Self::CommitAfterFailure,
        Self::ForgetCrash,
        Self::DemoteWithoutBitmap,
        Self::SkipLogCommit,
        Self::ForgetExtentWithoutBitmap,
        Self::ForgetExtentUnflushed,
        Self::ReleaseExtentAtAck,
        Self::BitsBeforeStable,
        Self::ServeUnconfirmed,
        Self::ServeOtherGeneration,
        Self::ReadStaleCopy,
        Self::ForgetOvertaken,
        Self::PolicyPicksTheOther,
        Self::PromoteUnfenced,
        Self::ThawUnfenced,
        Self::KeepOutdatedMark,
        Self::FenceForSlept,
        Self::CurrentUntilOverwritten,
    ];

    /// Those that only three and more nodes can notice.
    pub const OF_MANY: [Self; 8] = [
        Self::RelyOnUntoldGeneration,
        Self::ForgetUnsettled,
        Self::NoMarksForThird,
        Self::ResyncNotMarkedForThird,
        Self::SurvivorWithoutDoubt,
        Self::GrantTwice,
        Self::BehindForEver,
        Self::TwoSources,
    ];
}

/// Stands in a sabotaged program and in no other (`tests/tidy.rs` looks for it).
#[cfg(sabotage)]
pub const MARK: &str = "twinblk with deliberate mistakes: for the simulation only";

#[cfg(sabotage)]
mod chosen {
    use super::Mistake;
    use core::sync::atomic::{AtomicU8, Ordering};

    static CHOSEN: AtomicU8 = AtomicU8::new(0);

    /// From now on all engines of this process make this mistake, or none.
    pub fn choose(mistake: Option<Mistake>) {
        CHOSEN.store(mistake.map_or(0, |m| m as u8), Ordering::Relaxed);
    }

    pub(crate) fn is(mistake: Mistake) -> bool {
        // Keeps the mark in every program that could make a mistake.
        !core::hint::black_box(super::MARK).is_empty()
            && CHOSEN.load(Ordering::Relaxed) == mistake as u8
    }
}

#[cfg(sabotage)]
pub use chosen::choose;
#[cfg(sabotage)]
pub(crate) use chosen::is;

/// Whether this mistake is to be made: never.
#[cfg(not(sabotage))]
#[inline(always)]
pub(crate) const fn is(_: Mistake) -> bool {
    false
}
