//! `why RES promote`, `why RES demote`: would it work, and if not, what stands against it.

use super::{Picture, finish};
use crate::api::{DeviceStatus, Finding, Why};
use crate::config;
use crate::driver::mailbox::StatusReply;
use twinblk_engine::command::Refusal;
use twinblk_engine::event::{ConnState, DiskState, Role};

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    Promote,
    Demote,
}

/// Answers without doing anything.
pub(crate) fn about(
    question: About,
    config: &config::Resource,
    reply: &StatusReply,
    device: Option<DeviceStatus>,
) -> Why {
    let picture = Picture {
        config,
        status: &reply.status,
        now: reply.now,
        device,
    };
    let finding = match question {
        About::Promote => promote(&picture),
        About::Demote => demote(&picture),
    };
    let healthy = match question {
        // What depends on a handler is not certain to work.
        About::Promote => {
            let certain = reply.status.fences_first.is_empty();
            picture.is_primary() || reply.status.may_promote.is_ok() && certain
        }
        About::Demote => !picture.is_primary() || reply.status.may_demote.is_ok(),
    };
    finish(config, finding.state.clone(), healthy, vec![finding])
}

fn promote(p: &Picture<'_>) -> Finding {
    if p.is_primary() {
        return already(p, "Primary");
    }
    match &p.status.may_promote {
        Err(refusal) => refused(p, "primary", refusal),
        Ok(()) if !p.status.fences_first.is_empty() => depends(p),
        Ok(()) => {
            let connected: Vec<&str> = p
                .status
                .peers
                .iter()
                .filter(|peer| peer.connection == ConnState::Connected)
                .map(|peer| peer.name.as_str())
                .collect();
            let absent = p
                .status
                .peers
                .iter()
                .find(|peer| peer.connection != ConnState::Connected);
            let cause = match connected.is_empty() {
                true => "this node's data are current, and no peer is connected that could refuse"
                    .to_string(),
                false => format!(
                    "this node's data are current, and no connected peer is Primary; {} would be asked, \
                     and refuses only if it is being promoted itself at that moment",
                    connected.join(", ")
                ),
            };
            let risk = match absent {
                Some(peer) => format!(
                    "{} is not connected: if it is, or becomes, Primary as well, the copies part \
                     (split brain)",
                    peer.name
                ),
                None => "none".to_string(),
            };
            Finding {
                about: p.res().to_string(),
                state: format!("`twinblk primary {}` would work on {}", p.res(), p.me()),
                cause,
                since_seconds: None,
                risk,
                next: "nothing, before somebody orders it".to_string(),
                commands: vec![p.here("primary RES", "makes this node serve clients")],
            }
        }
    }
}

/// The handler `fence-peer` decides.
fn depends(p: &Picture<'_>) -> Finding {
    let peers = p.status.fences_first.join(", ");
    let current = p
        .status
        .volumes
        .iter()
        .all(|v| v.disk == DiskState::UpToDate);
    let (copy, codes, unreachable) = match current {
        true => ("are current, as far as it knows", "3, 4, 5 or 7", ""),
        false => (
            "may not be the newest (Consistent)",
            "3, 4 or 7",
            "; 5, \"cannot be reached\", does not count for such a copy",
        ),
    };
    Finding {
        about: p.res().to_string(),
        state: format!(
            "`twinblk primary {}` on {} would call the fence-peer handler for {peers} first; what that \
             answers decides",
            p.res(),
            p.me()
        ),
        cause: format!(
            "{peers} is not connected and not known to be Outdated, `fencing` is not \"dont-care\", and \
             the data of {} {copy}",
            p.me()
        ),
        since_seconds: None,
        risk: "none: without the handler's word this node is not promoted".to_string(),
        next: format!(
            "nothing, before somebody orders it. If the handler then ends with {codes}, {} is \
             Primary{unreachable}. With 6 ({peers} is Primary) its copy is Outdated from then on. With \
             any other, or when it fails or takes too long, the order is refused and nothing has changed",
            p.me()
        ),
        commands: vec![p.here(
            "primary RES",
            format!(
                "calls the handler, which makes {peers} harmless, and makes this node serve clients"
            ),
        )],
    }
}

fn demote(p: &Picture<'_>) -> Finding {
    if p.status.role != Role::Primary {
        return already(p, "Secondary");
    }
    match &p.status.may_demote {
        Err(refusal) => refused(p, "secondary", refusal),
        Ok(()) => Finding {
            about: p.res().to_string(),
            state: format!("`twinblk secondary {}` would work on {}", p.res(), p.me()),
            cause: "no client holds the export".to_string(),
            since_seconds: None,
            risk: "none: everything is flushed here and on the peers before".to_string(),
            next: "nothing, before somebody orders it".to_string(),
            commands: vec![p.here(
                "secondary RES",
                "stops serving; another node can be made Primary",
            )],
        },
    }
}

fn already(p: &Picture<'_>, role: &str) -> Finding {
    let other = match role {
        "Primary" => p.here("secondary RES", "makes this node Secondary"),
        _ => p.here("primary RES", "makes this node Primary"),
    };
    Finding {
        about: p.res().to_string(),
        state: format!("{} is {role} already", p.me()),
        cause: "it was made so".to_string(),
        since_seconds: p.ago(p.status.role_since),
        risk: "none".to_string(),
        next: "nothing".to_string(),
        commands: vec![other],
    }
}

fn refused(p: &Picture<'_>, verb: &str, refusal: &Refusal) -> Finding {
    Finding {
        about: p.res().to_string(),
        state: format!(
            "`twinblk {verb} {}` would be refused on {}",
            p.res(),
            p.me()
        ),
        cause: refusal.reason.clone(),
        since_seconds: None,
        risk: "none: a refusal changes nothing".to_string(),
        next: match refusal.way_out.is_empty() {
            true => "nothing, before that is over".to_string(),
            false => format!("the way out: {}", refusal.way_out),
        },
        commands: vec![p.here("why RES", "explains the state as a whole")],
    }
}
