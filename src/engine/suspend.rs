//! Suspended I/O: clients' requests wait, unanswered, until every reason is gone.
//!
//! What arrives waits before it has begun ([`Resource::freeze`]); what has been carried out already
//! waits for its answer (`completion.rs`, `held`), so that nothing is confirmed to a client that the
//! reason for the suspension may yet take back.

use crate::command::{Refusal, RefusalKind};
use crate::event::{Severity, What};
use crate::ids::CommandId;
use crate::input::ClientRequest;
use crate::output::ReplyError;
use crate::request::errno;
use crate::resource::Resource;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Why I/O is suspended. The reasons are independent: I/O flows only when none is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// `suspend-io`.
    User,
    /// No current copy can be reached (`on-no-data-accessible = "suspend-io"`).
    NoData,
    /// A peer was lost and is being fenced (`fencing = "resource-and-stonith"`).
    Fencing,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::NoData, Self::Fencing];

    /// Its name in `status` and `events`, as in DRBD.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::NoData => "no-data",
            Self::Fencing => "fencing",
        }
    }
}

/// The reasons that hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Suspended(u8);

impl Suspended {
    /// Whether this reason holds.
    pub fn has(self, reason: Reason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }

    /// Whether this reason holds and no other.
    pub fn only(self, reason: Reason) -> bool {
        self.0 == 1 << reason as u8
    }

    /// Whether any does.
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// "no", or the names of the reasons with commas between them.
    pub fn words(self) -> String {
        let names: Vec<&str> = Reason::ALL
            .iter()
            .filter(|&&r| self.has(r))
            .map(|r| r.name())
            .collect();
        if names.is_empty() {
            String::from("no")
        } else {
            names.join(",")
        }
    }

    /// With this reason too.
    #[must_use]
    pub fn with(mut self, reason: Reason) -> Self {
        self.set(reason, true);
        self
    }

    fn set(&mut self, reason: Reason, on: bool) {
        if on {
            self.0 |= 1 << reason as u8;
        } else {
            self.0 &= !(1 << reason as u8);
        }
    }
}

impl Resource {
    /// Suspends I/O for `reason`; says so once.
    pub(crate) fn suspend(&mut self, reason: Reason, cause: String) {
        let old = self.suspended;
        self.suspended.set(reason, true);
        if old != self.suspended {
            let what = What::Suspended(old, self.suspended);
            self.event(what, Severity::Warning, cause);
        }
    }

    /// `reason` is gone. When it was the last one, everything that waited goes on.
    pub(crate) fn resume(&mut self, reason: Reason, cause: String) {
        let old = self.suspended;
        self.suspended.set(reason, false);
        if old == self.suspended {
            return;
        }
        let what = What::Suspended(old, self.suspended);
        self.event(what, Severity::Info, cause);
        if self.suspended.any() {
            return;
        }
        self.release_held();
        for request in core::mem::take(&mut self.frozen) {
            self.client_request(request);
        }
    }

    /// A request waits because I/O is suspended.
    pub(crate) fn freeze(&mut self, request: ClientRequest) {
        self.frozen.push_back(request);
    }

    /// Ends every suspension by giving an error to all that waits: the clients were told so.
    pub(crate) fn fail_suspended(&mut self, cause: &str) {
        if !self.suspended.any() {
            return;
        }
        self.give_up_started();
        for request in core::mem::take(&mut self.frozen) {
            let text = "I/O was suspended, and was given up by an order";
            self.refuse(
                &request,
                ReplyError {
                    errno: errno::EIO,
                    text,
                },
            );
        }
        for v in 0..self.volumes.len() {
            self.fail_gated(v);
        }
        for v in &mut self.volumes {
            v.bump_owed = false;
        }
        for p in &mut self.peers {
            p.fence.awaited = false;
        }
        for reason in Reason::ALL {
            self.resume(reason, String::from(cause));
        }
    }

    /// `suspend-io`.
    pub(crate) fn order_suspend(&mut self, id: CommandId) {
        let text = String::from("I/O is suspended; `twinblk resume-io RES` lets it go on");
        self.suspend(Reason::User, String::from("suspended by an administrator"));
        self.done(id, Ok(text));
    }

    /// `resume-io`: also ends a suspension that the program would end only later, or never.
    pub(crate) fn order_resume(&mut self, id: CommandId) {
        if !self.suspended.any() {
            return self.done(id, Ok(String::from("I/O was not suspended")));
        }
        for p in &mut self.peers {
            p.fence.awaited = false;
        }
        for reason in [Reason::User, Reason::Fencing] {
            self.resume(reason, String::from("resumed by an administrator"));
        }
        let result = if self.suspended.has(Reason::NoData) {
            Err(Refusal {
                kind: RefusalKind::NoUpToDateData,
                reason: String::from(
                    "no current copy of the data can be reached: I/O waits for one",
                ),
                way_out: format!(
                    "connect the peer that has it, or attach the disk (`twinblk why {0}` says which), or \
                     let clients have errors with `twinblk secondary --force {0}`",
                    self.cfg.name
                ),
            })
        } else {
            Ok(String::from("I/O goes on"))
        };
        self.done(id, result);
    }
}
