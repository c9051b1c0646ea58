//! `why`: what the state is, why, since when, what is at risk, what happens next by itself, and which
//! commands would do what. A pure function of the picture `status` shows, so that both always tell
//! the same story.

mod about;
mod disk;
mod peer;
mod resource;
#[cfg(test)]
mod tests;

pub(crate) use about::{About, about};

use super::convert::{ago, names};
use crate::api::{DeviceStatus, Finding, Suggestion, Why};
use crate::config;
use crate::driver::mailbox::StatusReply;
use twinblk_engine::event::Role;
use twinblk_engine::status::Status;
use twinblk_engine::time::Instant;

/// What the findings are made from.
struct Picture<'a> {
    config: &'a config::Resource,
    status: &'a Status,
    now: Instant,
    device: Option<DeviceStatus>,
}

impl Picture<'_> {
    /// Name of the resource.
    fn res(&self) -> &str {
        &self.config.name
    }

    fn me(&self) -> &str {
        &self.config.me.name
    }

    fn ago(&self, since: Instant) -> Option<u64> {
        ago(self.now, since)
    }

    /// A command of twinblk to be typed here.
    fn here(&self, verb: &str, effect: impl Into<String>) -> Suggestion {
        self.on(self.me(), verb, effect)
    }

    /// A command of twinblk to be typed on `node`: `verb` has `RES` where the resource's name goes.
    fn on(&self, node: &str, verb: &str, effect: impl Into<String>) -> Suggestion {
        Suggestion {
            command: format!("twinblk {}", verb.replace("RES", self.res())),
            node: node.to_string(),
            effect: effect.into(),
        }
    }

    /// What this node knows to differ from a peer, in bytes.
    fn out_of_sync(&self, peer: &twinblk_engine::status::PeerStatus) -> u64 {
        peer.volumes.iter().map(|v| v.out_of_sync).sum()
    }

    fn is_primary(&self) -> bool {
        self.status.role == Role::Primary
    }
}

/// Explains a resource that is up.
pub(crate) fn why(
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
    let mut findings = resource::findings(&picture);
    findings.extend(disk::findings(&picture));
    findings.extend(peer::findings(&picture));
    let healthy = findings.is_empty();
    let summary = match findings.first() {
        None => resource::all_is_well(&picture),
        Some(first) => first.state.clone(),
    };
    finish(config, summary, healthy, findings)
}

/// Explains a resource that is not up; `words` is what the daemon knows of the reason.
pub(crate) fn why_down(config: &config::Resource, words: Option<&str>) -> Why {
    let (res, me) = (&config.name, &config.me.name);
    let cause = words.unwrap_or("it was not started on this node, or it was taken down");
    let next = match cause.contains("tried again") {
        true => "it comes up by itself as soon as that is mended",
        false => "nothing: it stays down until somebody starts it",
    };
    let state = format!("{res} is not up on {me}");
    let finding = Finding {
        about: res.clone(),
        state: state.clone(),
        cause: cause.to_string(),
        since_seconds: None,
        risk: "this node serves no clients and holds no copy that follows the others".to_string(),
        next: next.to_string(),
        commands: vec![Suggestion {
            command: format!("twinblk up {res}"),
            node: me.clone(),
            effect: "opens the disk, as Secondary, and connects to the peers".to_string(),
        }],
    };
    finish(config, state, false, vec![finding])
}

/// Explains a resource whose loop does not answer.
pub(crate) fn why_silent(config: &config::Resource) -> Why {
    let state = format!("{} on {} does not answer", config.name, config.me.name);
    let finding = Finding {
        about: config.name.clone(),
        state: state.clone(),
        cause: "its thread is held up by the kernel, most likely in a call that waits for its disk"
            .to_string(),
        since_seconds: None,
        risk: "clients and peers wait for it; peers give it up when `ping-timeout` is over"
            .to_string(),
        next: "it goes on when the disk answers".to_string(),
        commands: vec![Suggestion {
            command: format!("twinblk status {}", config.name),
            node: config.me.name.clone(),
            effect: "shows what it told last".to_string(),
        }],
    };
    finish(config, state, false, vec![finding])
}

fn finish(
    config: &config::Resource,
    summary: String,
    healthy: bool,
    mut findings: Vec<Finding>,
) -> Why {
    for finding in &mut findings {
        for text in [
            &mut finding.about,
            &mut finding.state,
            &mut finding.cause,
            &mut finding.risk,
            &mut finding.next,
        ] {
            *text = names(config, text);
        }
        for command in &mut finding.commands {
            command.effect = names(config, &command.effect);
        }
    }
    Why {
        resource: config.name.clone(),
        node: config.me.name.clone(),
        healthy,
        summary: names(config, &summary),
        findings,
    }
}
