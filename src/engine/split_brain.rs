//! What to do about a split brain: the policies `after-sb-0pri`, `after-sb-1pri`, `after-sb-2pri`
//! with DRBD's values.
//!
//! Detection is [`crate::handshake`]'s affair. Whatever policy is configured, a split brain is
//! refused unless an administrator said `connect --discard-my-data`: that is what `disconnect`
//! means, and no other policy is carried out yet. They are parsed, printed and compared between the
//! nodes (both must be configured alike, or they would pick different victims). Carrying them out
//! means adding [`Policies`] to [`crate::handshake::Context`] and asking them in the one place
//! where a split brain is resolved, `handshake::resolve_split_brain`, by the number of nodes that
//! are Primary at that moment ([`Policies::by_primaries`]).

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

named! {
    /// `after-sb-0pri`: both nodes are Secondary when the split brain is found.
    AfterSb0Pri {
        /// Resolve nothing: part, and wait for an administrator.
        #[default]
        Disconnect = "disconnect",
        /// Give up the copy of the node that became Primary last.
        DiscardYoungerPrimary = "discard-younger-primary",
        /// Give up the copy of the node that became Primary first.
        DiscardOlderPrimary = "discard-older-primary",
        /// Give up the copy that was not written to, if there is one.
        DiscardZeroChanges = "discard-zero-changes",
        /// Give up the copy with fewer changed blocks.
        DiscardLeastChanges = "discard-least-changes",
        /// Give up this node's copy.
        DiscardLocal = "discard-local",
        /// Give up the peer's copy.
        DiscardRemote = "discard-remote",
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

/// The three policies of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policies {
    /// No Primary.
    pub zero_primaries: AfterSb0Pri,
    /// One Primary.
    pub one_primary: AfterSb1Pri,
    /// Two Primaries.
    pub two_primaries: AfterSb2Pri,
}

impl Policies {
    /// Name of the policy that applies with so many Primaries at the moment.
    pub fn by_primaries(&self, primaries: usize) -> &'static str {
        match primaries {
            0 => self.zero_primaries.name(),
            1 => self.one_primary.name(),
            _ => self.two_primaries.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies};

    #[test]
    fn every_name_parses_to_its_value_and_nothing_else_does() {
        for &value in AfterSb0Pri::ALL {
            assert_eq!(AfterSb0Pri::parse(value.name()), Some(value));
        }
        for &value in AfterSb1Pri::ALL {
            assert_eq!(AfterSb1Pri::parse(value.name()), Some(value));
        }
        for &value in AfterSb2Pri::ALL {
            assert_eq!(AfterSb2Pri::parse(value.name()), Some(value));
        }
        assert_eq!(AfterSb0Pri::parse("Disconnect"), None);
        assert_eq!(
            AfterSb1Pri::parse("discard-zero-changes"),
            None,
            "a value of 0pri only"
        );
        assert_eq!(AfterSb2Pri::parse(""), None);
    }

    #[test]
    fn nothing_is_discarded_by_default() {
        let policies = Policies::default();
        assert!((0..3).all(|primaries| policies.by_primaries(primaries) == "disconnect"));
    }
}
