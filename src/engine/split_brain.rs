//! What to do when the copies of two nodes have parted, or the generations demand to overwrite a
//! Primary: the policies `after-sb-0pri`, `after-sb-1pri`, `after-sb-2pri` and `rr-conflict` with
//! DRBD's values.
//!
//! Detection is [`crate::handshake`]'s affair, and so is asking them (`handshake/policies.rs`), by the
//! number of nodes that are Primary at that moment. They are exchanged and compared when two nodes
//! connect: configured differently they would pick different victims. `disconnect`, the default of
//! all four, gives nothing up without an order.

use crate::ids::NodeId;
use alloc::format;
use alloc::string::{String, ToString};

/// Defines an enum of named values with `parse` and `name`.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$vdoc])* $variant,)+
        }

        impl $type {
            /// All values, in the order of DRBD's manual.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value with this name in a configuration file.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }

            /// Its name in a configuration file.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

/// `after-sb-0pri`: both nodes are Secondary when the split brain is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AfterSb0Pri {
    /// Resolve nothing: part, and wait for an administrator.
    #[default]
    Disconnect,
    /// Give up the copy of the node that became Primary only after contact was lost, if the other
    /// was Primary before; otherwise as `discard-least-changes`.
    DiscardYoungerPrimary,
    /// Give up the copy of the node that was Primary when contact was lost, if the other was not;
    /// otherwise as `discard-least-changes`.
    DiscardOlderPrimary,
    /// Give up the copy that was not written to, if there is one.
    DiscardZeroChanges,
    /// Give up the copy with fewer changed blocks.
    DiscardLeastChanges,
    /// Give up the copy of this node (`discard-node-NAME`).
    DiscardNode(NodeId),
}

impl AfterSb0Pri {
    /// The values that name no node, in the order of DRBD's manual.
    pub const NAMED: [Self; 5] = [
        Self::Disconnect,
        Self::DiscardYoungerPrimary,
        Self::DiscardOlderPrimary,
        Self::DiscardZeroChanges,
        Self::DiscardLeastChanges,
    ];

    /// The value with this name in a configuration file; `discard-node-NAME` is not among them.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMED
            .into_iter()
            .find(|value| value.fixed_name() == name)
    }

    fn fixed_name(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::DiscardYoungerPrimary => "discard-younger-primary",
            Self::DiscardOlderPrimary => "discard-older-primary",
            Self::DiscardZeroChanges => "discard-zero-changes",
            Self::DiscardLeastChanges => "discard-least-changes",
            Self::DiscardNode(_) => "discard-node",
        }
    }

    /// Its name, a node by its number: the same on both nodes.
    pub fn name(self) -> String {
        match self {
            Self::DiscardNode(node) => format!("discard-node-{}", node.0),
            _ => self.fixed_name().to_string(),
        }
    }
}

named! {
    /// `after-sb-1pri`: one node is Primary when the split brain is found.
    AfterSb1Pri {
        /// Resolve nothing: part, and wait for an administrator.
        #[default]
        Disconnect = "disconnect",
        /// Give up the Secondary's copy if `after-sb-0pri` would choose it too; otherwise part.
        Consensus = "consensus",
        /// Do what `after-sb-0pri` says, even under the feet of the Primary.
        ViolentlyAs0p = "violently-as0p",
        /// Give up the Secondary's copy.
        DiscardSecondary = "discard-secondary",
        /// As `after-sb-0pri` says; if the Primary's copy is to be given up and it cannot be
        /// demoted, call its `pri-lost-after-sb` handler.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}

named! {
    /// `after-sb-2pri`: both nodes are Primary when the split brain is found.
    AfterSb2Pri {
        /// Resolve nothing: part, and wait for an administrator.
        #[default]
        Disconnect = "disconnect",
        /// Do what `after-sb-0pri` says, even under the feet of a Primary.
        ViolentlyAs0p = "violently-as0p",
        /// Call the `pri-lost-after-sb` handler of the node `after-sb-0pri` would choose, unless it
        /// can be demoted.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}

named! {
    /// `rr-conflict`: there is no split brain, but the generations demand to overwrite a Primary.
    RrConflict {
        /// Part, and wait for an administrator.
        #[default]
        Disconnect = "disconnect",
        /// Demote it if no client holds the export; otherwise call its `pri-lost` handler and part.
        CallPriLost = "call-pri-lost",
        /// Demote it by force: its clients get errors.
        Violently = "violently",
        /// Part, and try again after `connect-int`, until somebody has demoted it.
        RetryConnect = "retry-connect",
    }
}

/// The policies of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policies {
    /// No Primary.
    pub zero_primaries: AfterSb0Pri,
    /// One Primary.
    pub one_primary: AfterSb1Pri,
    /// Two Primaries.
    pub two_primaries: AfterSb2Pri,
    /// The resync's direction and the roles disagree.
    pub conflict: RrConflict,
}

impl Policies {
    /// As they are compared between the nodes.
    pub fn names(&self) -> [String; 4] {
        [
            self.zero_primaries.name(),
            self.one_primary.name().to_string(),
            self.two_primaries.name().to_string(),
            self.conflict.name().to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};
    use crate::ids::NodeId;

    #[test]
    fn every_name_parses_to_its_value_and_nothing_else_does() {
        for value in AfterSb0Pri::NAMED {
            assert_eq!(AfterSb0Pri::parse(&value.name()), Some(value));
        }
        for &value in AfterSb1Pri::ALL {
            assert_eq!(AfterSb1Pri::parse(value.name()), Some(value));
        }
        for &value in AfterSb2Pri::ALL {
            assert_eq!(AfterSb2Pri::parse(value.name()), Some(value));
        }
        for &value in RrConflict::ALL {
            assert_eq!(RrConflict::parse(value.name()), Some(value));
        }
        assert_eq!(AfterSb0Pri::parse("Disconnect"), None);
        assert_eq!(AfterSb0Pri::parse("discard-node"), None, "which?");
        assert_eq!(
            AfterSb1Pri::parse("discard-zero-changes"),
            None,
            "a value of 0pri only"
        );
        assert_eq!(AfterSb2Pri::parse(""), None);
    }

    #[test]
    fn a_node_is_named_by_its_number_alike_on_both_ends() {
        let policies = Policies {
            zero_primaries: AfterSb0Pri::DiscardNode(NodeId(1)),
            ..Policies::default()
        };
        assert_eq!(policies.names()[0], "discard-node-1");
    }

    #[test]
    fn nothing_is_discarded_by_default() {
        assert!(
            Policies::default()
                .names()
                .iter()
                .all(|n| n == "disconnect")
        );
    }
}
