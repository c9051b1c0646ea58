//! `check-md`: whether the metadata of this node's volumes are sound. Only reads, and only a disk
//! that nobody uses: a daemon writes several blocks one after the other, and between two of them a
//! verdict would be worth nothing.

use super::args::CheckMd;
use super::create_md::names;
use super::disk::{Place, open_at_rest};
use super::dump_md::{Looked, look_into, verdict};
use super::exit::{CliError, Code};
use super::print;
use crate::config::{self, Resource};
use std::path::Path;
use twinblk_engine::ids::NodeId;
use twinblk_engine::metadata::check::check_configured;

/// Runs the verb.
pub(super) fn run(args: &CheckMd) -> Result<(), CliError> {
    let (directory, node) = (&args.local.config, args.local.node.as_deref());
    let mut first = None;
    for name in names(directory, node, &args.resource.name)? {
        let result = check(directory, node, &name).map_err(|e| e.about(&name));
        let (text, error) = match result {
            Ok(checked) => checked,
            Err(error) => (String::new(), Some(error)),
        };
        print(&text)?;
        first = first.or(error);
    }
    first.map_or(Ok(()), Err)
}

/// What is to be told, and the error when something is wrong.
pub(super) fn check(
    directory: &Path,
    node: Option<&str>,
    name: &str,
) -> Result<(String, Option<CliError>), CliError> {
    let config = config::load(directory, node)?;
    let (mut out, mut first) = (String::new(), None);
    for resource in config.resources.iter().filter(|r| r.name == name) {
        for volume in &resource.me.volumes {
            let place = Place::open(volume, open_at_rest).map_err(busy)?;
            let (text, error) = judge(resource, look_into(resource, volume, &place));
            out += &text;
            first = first.or(error);
        }
    }
    Ok((out, first))
}

/// Refused because somebody uses the disk: says why that matters here.
fn busy(mut error: CliError) -> CliError {
    if error.code == Code::InUse as u8 {
        error.next = "what a daemon writes is in motion, so a verdict would be worth nothing: `twinblk \
                      down` the resource first; `twinblk dump-md` looks all the same, `twinblk status` \
                      asks the daemon"
            .to_owned();
    }
    error
}

fn judge(resource: &Resource, mut looked: Looked) -> (String, Option<CliError>) {
    let name = &resource.name;
    if let Ok(image) = &looked.opened {
        let peers: Vec<NodeId> = resource.peers.iter().map(|p| NodeId(p.id)).collect();
        let found = check_configured(&image.superblock, &peers);
        looked.findings.extend(found);
    }
    let mut out = String::new();
    for finding in &looked.findings {
        let mark = if finding.wrong { "WRONG: " } else { "" };
        out += &format!("{name}: {mark}{}\n", finding.text);
        if finding.wrong && !finding.next.is_empty() {
            out += &format!("  {}\n", finding.next);
        }
    }
    let error = verdict(&looked);
    if error.is_none() {
        out += &format!("{name}: the metadata are sound\n");
    }
    (out, error)
}
