//! `dump-md`: what the metadata of this node's volumes say, for people and as JSON.

use super::args::DumpMd;
use super::create_md::{Device, names, owner};
use super::disk::open_to_read;
use super::exit::{CliError, Code};
use super::human::size;
use super::print;
use crate::config::{self, MetaDisk, Resource};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::UUID_JUST_CREATED;
use twinblk_engine::metadata::check::{Finding, check};
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::metadata::open::{OpenError, Recovered, open, verify_identity};
use twinblk_engine::metadata::superblock::PeerFlags;

/// What was found for one volume.
#[derive(Debug)]
pub(super) struct Looked {
    resource: Resource,
    volume: u16,
    disk: PathBuf,
    /// Where the metadata are.
    meta: PathBuf,
    placement: Placement,
    in_use: bool,
    findings: Vec<Finding>,
    opened: Result<Recovered, OpenError>,
}

/// Runs the verb.
pub(super) fn run(args: &DumpMd) -> Result<(), CliError> {
    let (directory, node) = (&args.local.config, args.local.node.as_deref());
    let mut first = None;
    let mut list = Vec::new();
    for name in names(directory, node, &args.resource.name)? {
        for looked in look(directory, node, &name).map_err(|e| e.about(&name))? {
            let (text, wrong) = text(&looked);
            first = first.or(wrong);
            if args.json {
                list.push(json(&looked));
            } else {
                print(&text)?;
            }
        }
    }
    if args.json {
        print(&format!("{:#}\n", Value::Array(list)))?;
    }
    first.map_or(Ok(()), Err)
}

/// Reads the metadata of all of a resource's volumes on this node.
pub(super) fn look(
    directory: &Path,
    node: Option<&str>,
    name: &str,
) -> Result<Vec<Looked>, CliError> {
    let mut config = config::load(directory, node)?;
    config.resources.retain(|r| r.name == name);
    let mut list = Vec::new();
    for resource in config.resources {
        for volume in resource.me.volumes.clone() {
            list.push(look_at(&resource, &volume)?);
        }
    }
    Ok(list)
}

fn look_at(resource: &Resource, volume: &config::Volume) -> Result<Looked, CliError> {
    let disk = open_to_read(&volume.disk)?;
    let (meta, placement) = match &volume.meta {
        MetaDisk::Internal => (None, Placement::Internal),
        MetaDisk::External(path) => (Some(open_to_read(path)?), Placement::External),
    };
    let target = meta.as_ref().unwrap_or(&disk);
    let mut device = Device(&target.file);
    Ok(Looked {
        resource: resource.clone(),
        volume: volume.number,
        findings: check(&mut device, target.size, disk.size, placement),
        opened: open(&mut device, target.size, disk.size, placement),
        meta: target.path.clone(),
        in_use: !(disk.exclusive && target.exclusive),
        disk: disk.path,
        placement,
    })
}

/// What is wrong, if anything is.
fn verdict(looked: &Looked) -> Option<CliError> {
    let name = &looked.resource.name;
    let shown = looked.meta.display();
    let wrong = |what: String, next: &str| {
        Some(CliError::new(
            Code::Metadata,
            format!("{name}: {shown}: {what}"),
            next,
        ))
    };
    let identity = looked.opened.as_ref().map(|r| {
        let node = NodeId(looked.resource.me.id);
        verify_identity(&r.superblock, name, VolumeId(looked.volume), node)
    });
    match identity {
        Err(error) => {
            let next = match error {
                OpenError::NoMetadata => "see that the disk and meta-disk configured are right",
                OpenError::Placement(_) => "correct meta-disk in the configuration",
                OpenError::BothDamaged(..) => {
                    "`create-md --force` makes new ones; the data then need a full sync from the peer"
                }
                _ => "",
            };
            wrong(error.to_string(), next)
        }
        Ok(Err(error)) => wrong(error.to_string(), "correct `disk` in the configuration"),
        Ok(Ok(())) => match looked.findings.iter().find(|f| f.wrong) {
            Some(finding) => wrong(finding.text.clone(), "`up` repairs what can be repaired"),
            None => None,
        },
    }
}

/// For people; and what is wrong.
pub(super) fn text(looked: &Looked) -> (String, Option<CliError>) {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, looked);
    (out, verdict(looked))
}

fn write_text(out: &mut String, looked: &Looked) -> std::fmt::Result {
    let place = match looked.placement {
        Placement::Internal => "at its end".to_owned(),
        Placement::External => format!("on {}", looked.meta.display()),
    };
    let (name, disk) = (&looked.resource.name, looked.disk.display());
    writeln!(
        out,
        "{name} volume:{} {disk}, metadata {place}",
        looked.volume
    )?;
    if looked.in_use {
        writeln!(out, "  the disk is in use: what is shown may be in motion")?;
    }
    if let Ok(recovered) = &looked.opened {
        write_superblock(out, looked, recovered)?;
    }
    for finding in &looked.findings {
        writeln!(
            out,
            "  {}{}",
            if finding.wrong { "WRONG: " } else { "" },
            finding.text
        )?;
    }
    Ok(())
}

fn write_superblock(out: &mut String, looked: &Looked, r: &Recovered) -> std::fmt::Result {
    let (sb, layout) = (&r.superblock, &r.layout);
    writeln!(out, "  {}, device {:016x}", owner(sb), sb.device_uuid)?;
    let agreed = match sb.agreed_size {
        0 => "not agreed with a peer yet".to_owned(),
        bytes => format!("agreed {bytes} bytes"),
    };
    let usable = layout.data_size;
    writeln!(
        out,
        "  size:     usable {} ({usable} bytes), {agreed}",
        size(usable)
    )?;
    let flags: Vec<&str> = sb.flags.names().collect();
    let flags = if flags.is_empty() {
        "none".to_owned()
    } else {
        flags.join(" ")
    };
    writeln!(out, "  flags:    {flags}")?;
    writeln!(out, "  current:  {}", uuid(sb.current))?;
    for (id, peer) in sb.peers.iter().enumerate() {
        let Some(slot) = peer.slot else { continue };
        let bits = r
            .bitmaps
            .get(usize::from(slot))
            .map_or(0, |b| b.count_set());
        let behind = match peer.bitmap {
            0 => "not behind".to_owned(),
            bitmap => format!("behind since {}", uuid(bitmap)),
        };
        let out_of_sync = size((bits * u64::from(layout.bitmap_block)).min(usable));
        write!(
            out,
            "  peer {}: bitmap slot {slot}, {behind}",
            peer_name(looked, id)
        )?;
        write!(out, ", out of sync {out_of_sync}")?;
        writeln!(
            out,
            "{}",
            if peer.flags.contains(PeerFlags::OUTDATED) {
                ", outdated"
            } else {
                ""
            }
        )?;
    }
    let history: Vec<String> = sb
        .history
        .iter()
        .filter(|u| **u != 0)
        .map(|u| format!("{u:016x}"))
        .collect();
    if !history.is_empty() {
        writeln!(out, "  history:  {}", history.join(" "))?;
    }
    let (block, slots) = (size(u64::from(layout.bitmap_block)), layout.slots);
    let bytes = size(layout.metadata_len());
    writeln!(
        out,
        "  layout:   {bytes} of metadata, {slots} bitmap slot(s), {block} per bit"
    )
}

fn peer_name(looked: &Looked, id: usize) -> String {
    match looked
        .resource
        .peers
        .iter()
        .find(|p| usize::from(p.id) == id)
    {
        Some(peer) => format!("{} (node id {id})", peer.name),
        None => format!("node id {id}"),
    }
}

/// A generation's name; its lowest bit tells whether it was Primary.
fn uuid(uuid: u64) -> String {
    let note = match uuid {
        UUID_JUST_CREATED => " (just created)",
        uuid if uuid & 1 == 1 => " (Primary)",
        _ => "",
    };
    format!("{uuid:016x}{note}")
}

/// As JSON; documented in `docs/commands.md`.
pub(super) fn json(looked: &Looked) -> Value {
    let metadata = looked
        .opened
        .as_ref()
        .map(superblock_json)
        .unwrap_or(Value::Null);
    let wrong: Vec<&str> = looked
        .findings
        .iter()
        .filter(|f| f.wrong)
        .map(|f| f.text.as_str())
        .collect();
    json!({
        "resource": looked.resource.name,
        "volume": looked.volume,
        "node": looked.resource.me.name,
        "node_id": looked.resource.me.id,
        "disk": looked.disk,
        "meta_disk": looked.meta,
        "in_use": looked.in_use,
        "error": verdict(looked).map(|e| e.what),
        "wrong": wrong,
        "metadata": metadata,
    })
}

fn superblock_json(r: &Recovered) -> Value {
    let (sb, layout) = (&r.superblock, &r.layout);
    let hex = |uuid: u64| format!("{uuid:016x}");
    let peers: Vec<Value> = (0u8..)
        .zip(&sb.peers)
        .filter_map(|(id, peer)| {
            let slot = peer.slot?;
            let bits = r
                .bitmaps
                .get(usize::from(slot))
                .map_or(0, |b| b.count_set());
            Some(json!({
                "node_id": id,
                "slot": slot,
                "bitmap_uuid": hex(peer.bitmap),
                "bits_set": bits,
                "flags": peer.flags.names().collect::<Vec<_>>(),
            }))
        })
        .collect();
    json!({
        "resource": sb.resource,
        "volume": sb.volume.0,
        "node_id": sb.node.0,
        "sequence": sb.sequence,
        "device_uuid": hex(sb.device_uuid),
        "current_uuid": hex(sb.current),
        "history_uuids": sb.history.iter().filter(|u| **u != 0).map(|u| hex(*u)).collect::<Vec<_>>(),
        "flags": sb.flags.names().collect::<Vec<_>>(),
        "agreed_size": sb.agreed_size,
        "data_size": layout.data_size,
        "disk_size": layout.disk_size,
        "block_size": sb.block_size,
        "bitmap_block": layout.bitmap_block,
        "slots": layout.slots,
        "extent_size": sb.extent_size,
        "reign": hex(sb.reign),
        "log_extents": r.log.as_ref().ok(),
        "peers": peers,
    })
}
