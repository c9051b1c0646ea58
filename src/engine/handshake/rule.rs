//! The rules by name, in the order they are tried, and what each is for.

/// Defines the rules with name, DRBD's name and meaning (the table in `docs/handshake.md`).
macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $drbd:literal, $meaning:literal;)+) => {
        /// What decided. The name is the same on both nodes; only the direction is mirrored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($(#[$doc])* $variant,)+
        }

        impl Rule {
            /// All rules in the order they are tried.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name, as messages show it and as it travels in a verdict.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What DRBD 9 calls it in its log, and the rule's number in 8.4.
            pub fn drbd_name(self) -> &'static str {
                match self {
                    $(Self::$variant => $drbd,)+
                }
            }

            /// When it hits and what follows, in words.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }
        }
    };
}

rules! {
    /// A node without a disk has no generations. Comparing the zeroes it would send would look
    /// like "just created" and start a full sync onto nothing.
    Diskless = "diskless", "–",
        "A node has no disk in use: nothing to compare, nothing to synchronise.";

    /// The Primary knows which generation its clients' writes are in. A copy of another one lacks some of
    /// them, or has what they never saw: to serve it would take back what was confirmed.
    OtherGeneration = "other-generation", "–",
        "Clients of one node, the Primary, are served from the other's copy, and that is not of the \
         generation they rely on: refused.";

    /// Neither copy has ever held data, so neither may be called the good one: picking a source by
    /// itself would show garbage as UpToDate. Should both *claim* usable data all the same, the
    /// generations are lost and the connection is refused.
    JustCreatedBoth = "just-created-both", "just-created-both [10]",
        "Both just created: no sync; both stay Inconsistent until one is forced to Primary or \
         `new-current-uuid --clear-bitmap` declares them equal.";

    /// The fresh disk may hold anything, so every block counts as different: a bitmap would be
    /// relative to nothing.
    JustCreatedOne = "just-created-one", "just-created-self, just-created-peer [20, 30]",
        "Only one just created: the other is source, full sync.";

    /// Both crashed while Primary (two Primaries, or a failover without a write in between). Each
    /// may hold writes of its last moments; what matters is that *both* pick the same one.
    BothOff = "both-off", "both-off [41]",
        "Equal generations, both crashed as Primary: the node that is Primary now is source, else \
         the better disk, else the lower node id; bitmap.";

    /// Under A and B the peer may lack writes that were completed towards the application. If it
    /// were the source, they would be rolled back although no disk was lost.
    CrashedPrimary = "crashed-primary", "crashed-primary, both-off [40, 41]",
        "Equal generations, one crashed as Primary, protocol A or B: the crashed Primary is \
         source (unless the other is Primary now, or its own disk is Outdated); bitmap.";

    /// Under C the survivor has every completed write, while the crashed node may have lost its
    /// disk's volatile cache. If the crashed node were the source, completed writes would vanish
    /// from the only copy that still has them. It holds whether or not the survivor was restarted
    /// since: after two power cuts both have what was flushed, and nobody was promised more.
    Survivor = "survivor", "crashed-primary, both-off [40, 41]",
        "Equal generations, one crashed as Primary, protocol C: the other is source, it has every \
         completed write (unless the crashed node is Primary again, or the other's disk is \
         Outdated); bitmap.";

    /// Only the link was lost: neither side forgot anything. Syncing more than the transfer log
    /// marked would be waste; ignoring what it marked would be silent divergence.
    Reconnect = "reconnect", "reconnect",
        "Equal generations and neither daemon was restarted since they were last connected (a link \
         blip): no sync beyond the bits the transfer log left, by bitmap.";

    /// The first law: bits say that blocks may differ, whatever the generations say. Answering "no
    /// sync" here and clearing them diverges silently (LINBIT/drbd issue 145).
    LeftoverBits = "leftover-bits", "reconcile",
        "Equal generations, nobody crashed as Primary, yet bits are set: bitmap. Source is the \
         node that is Primary now, else the better disk, else the one that holds the bits, else \
         the lower node id.";

    /// The copies are equal. A bitmap UUID that is still set comes from a resync whose end was
    /// confirmed on one side only; left standing it would later pass for "relative to an older
    /// generation".
    SameGeneration = "same-generation", "no-sync, lost-resync-end [34–38, 40]",
        "Equal generations, nobody crashed, no bits: no sync. A bitmap UUID left over from a lost \
         \"resync finished\" is cleared.";

    /// The bitmap of the newer node is relative to exactly the generation the older one has, so its
    /// bits cover the difference. Also how an interrupted resync goes on: a target's current UUID
    /// is the base of the source's bitmap. Contradictory UUIDs (each the older one) do not hit.
    Bitmap = "bitmap", "bitmap-self, bitmap-peer [70, 50]",
        "The current UUID of one is the other's bitmap UUID for it, or stands in the other's history \
         as newer than that: the other is source, bitmap. This is failover, and the resumption of an \
         interrupted resync.";

    /// The older node is an ancestor, but the bitmap is not relative to it: a bitmap resync would
    /// leave old blocks in place. And not vice versa: if each is in the other's history, neither
    /// is the newer one.
    History = "history", "history-self, history-peer [80, 60]",
        "The current UUID of one is in the other's history, and not vice versa: the other is \
         source, full sync.";

    /// The base of an interrupted resync is a name that source and target gave it: nobody else knows it.
    /// But a copy with holes is worth nothing by itself, so whoever has what it was to become may
    /// finish it.
    UnfinishedResync = "unfinished-resync", "–",
        "One is Inconsistent after a resync from a third node, and the other has, or had, the \
         generation it was being brought to: the other is source, full sync. If it never had that \
         generation, both wait for a node that has it; if it is Primary, refused as a split brain.";

    /// Both were written to since the generation their bitmaps are relative to. Any choice loses
    /// data, so it takes an order. The bitmaps of both are merged: blocks the victim wrote must be
    /// brought back too. A bitmap UUID of 4 ("just created") is no common ground.
    BitmapBoth = "bitmap-both", "bitmap-both [90]",
        "Equal bitmap UUIDs, different currents: split brain. Refused, unless a policy chooses a \
         victim; with `connect --discard-my-data` on one Secondary that one is target, by both \
         bitmaps merged.";

    /// As before, but nothing covers the difference.
    HistoryBoth = "history-both", "history-both [100]",
        "Only older generations meet: split brain. Refused; with `connect --discard-my-data` on \
         one Secondary that one is target, full sync.";

    /// Two copies that never were one, most likely a wrong address or a swapped disk. Zero and
    /// "just created" never count as something in common.
    Unrelated = "unrelated-data", "unrelated-data",
        "Nothing in common: refused. `create-md` on one node says that its data may be lost.";

    /// No complete copy is at hand. A source with holes would spread them and then call the result
    /// UpToDate.
    BothInconsistent = "both-inconsistent", "–",
        "Both disks are Inconsistent and not both just created: refused, there is no source; with \
         more than two nodes both wait for a third.";

    /// An Inconsistent disk is never a source, and one without bits has no record of what it
    /// lacks.
    InconsistentDisk = "inconsistent-disk", "(disk states)",
        "Exactly one disk is Inconsistent and no rule above made it the target: the other is \
         source; by bitmap, or full if no bit is set.";

    /// Two writers on one device would each see the other's blocks change.
    TwoPrimaries = "two-primaries", "(state change refused)",
        "Both are Primary and `allow-two-primaries` is off: refused, unless a rule above refuses.";

    /// A resync under a mounted file system changes blocks it has cached. Only an Inconsistent disk
    /// may be repaired under a Primary, and only with data that are not older than its own.
    RoleConflict = "role-conflict", "rr-conflict",
        "The target would be a Primary in use: refused until it is demoted, which `rr-conflict` may do.";

    /// Two sources at once would write the same blocks in no order, and the older one could come last.
    BusyElsewhere = "busy-elsewhere", "resync dependency",
        "Three and more nodes: the target is being brought up to date from another node: the \
         connection stays, and the generations are compared anew when that is over.";
}
