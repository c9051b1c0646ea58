//! `auto-promote`: whoever opens the export on a Secondary makes it Primary, if it may be; when the
//! last client is gone the engine demotes it again ([`twinblk_engine`], `auto_promote.rs`).

use super::convert;
use super::running::{Running, lock};
use crate::driver::mailbox::StatusReply;
use std::time::Duration;
use twinblk_engine::command::{Command, RefusalKind};
use twinblk_engine::event::Role;

/// How long a client may have to wait for the promotion, besides handlers.
const TIME: Duration = Duration::from_secs(20);

/// Whether a client that opens the export now is to be announced: this node is Primary, or may become
/// it, as far as it is known here; if a peer has to be fenced first it is asked for, as by `primary`.
pub(super) fn lets_in(running: &Running, reply: &StatusReply) -> bool {
    lock(&running.config).auto_promote()
        && (reply.status.role == Role::Primary || reply.status.may_promote.is_ok())
}

/// Announces a client that is about to open the export: the node is promoted for it, and stays Primary
/// until it has come. The error is for the client.
pub(super) async fn promote(running: &Running) -> Result<(), Refused> {
    let time = TIME + lock(&running.config).handler_timeout();
    let result = running.order(Command::AutoPromote, time).await;
    result.map(drop).map_err(|refusal| {
        let config = lock(&running.config).clone();
        let error = convert::error(&config, &refusal);
        Refused {
            pending: refusal.kind == RefusalKind::Timeout,
            text: match error.way_out.is_empty() {
                true => error.reason,
                false => format!("{}; {}", error.reason, error.way_out),
            },
        }
    })
}

/// Why a client is not let in.
pub(super) struct Refused {
    /// In words, for the client.
    pub(super) text: String,
    /// The promotion may still come to something, and then has to be taken back.
    pub(super) pending: bool,
}

/// The client it was done for did not come.
pub(super) async fn take_back(running: &Running) {
    // A refusal means that the resource is going down: then it is demoted anyway.
    let _ = running.order(Command::AutoDemote, TIME).await;
}
