//! `restore-md`: metadata from a dump back onto the disk. Looks first, at everything, and writes only
//! when nothing stands in the way.
//!
//! Invariant: without `--exact` a restored copy claims nothing. A dump does not know what was written
//! after it was taken, so the copy counts as Inconsistent with every block marked: it can be
//! overwritten by the peer, and can overwrite nothing until somebody says `primary --force`.

use super::args::RestoreMd;
use super::create_md::{meta_too_small, names, old_metadata, owner};
use super::disk::{Disk, Place, open_exclusive};
use super::exit::{CliError, Code};
use super::human::size;
use super::md_json::{Metadata, placement_word};
use super::print;
use super::signatures::{Probe, find};
use crate::config::{self, Resource, Volume};
use serde::Deserialize;
use std::path::Path;
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::BLOCK64;
use twinblk_engine::metadata::check::check_configured;
use twinblk_engine::metadata::image::Image;
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::metadata::open::verify_identity;
use twinblk_engine::metadata::superblock::MdFlags;

/// What of a dump's entry for a volume matters here.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    taken: String,
    #[serde(default)]
    in_use: bool,
    #[serde(default)]
    wrong: Vec<String>,
    metadata: Option<Metadata>,
}

/// How to restore.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct How {
    /// Overwrite what is there.
    pub(super) force: bool,
    /// Believe the dump.
    pub(super) exact: bool,
}

/// Runs the verb.
pub(super) fn run(args: &RestoreMd) -> Result<(), CliError> {
    let (directory, node) = (&args.local.config, args.local.node.as_deref());
    let how = How {
        force: args.force,
        exact: args.exact,
    };
    for name in names(directory, node, &args.resource.name)? {
        let text = restore(directory, node, &name, &args.file, how).map_err(|e| e.about(&name))?;
        print(&text)?;
    }
    Ok(())
}

/// Restores all of a resource's volumes on this node; tells what was done.
pub(super) fn restore(
    directory: &Path,
    node: Option<&str>,
    name: &str,
    file: &Path,
    how: How,
) -> Result<String, CliError> {
    let config = config::load(directory, node)?;
    let entries = read(file)?;
    let mut plans = Vec::new();
    for resource in config.resources.iter().filter(|r| r.name == name) {
        for volume in &resource.me.volumes {
            let entry = choose(&entries, resource, volume, file)?;
            plans.push((resource, plan(resource, volume, entry, file, how)?));
        }
    }
    let mut out = String::new();
    for (resource, plan) in plans {
        out += &carry_out(resource, &plan, file, how)?;
    }
    Ok(out)
}

fn read(file: &Path) -> Result<Vec<Entry>, CliError> {
    let shown = file.display();
    let text = std::fs::read(file).map_err(|e| {
        let next = "FILE is what `twinblk dump-md RES --json > FILE` wrote";
        CliError::new(Code::Other, format!("{shown} cannot be read: {e}"), next)
    })?;
    serde_json::from_slice(&text).map_err(|e| {
        let next = "FILE is what `twinblk dump-md RES --json > FILE` wrote; perhaps it is cut off, or of \
                    another version of twinblk";
        CliError::new(
            Code::Metadata,
            format!("{shown} is no dump of metadata: {e}"),
            next,
        )
    })
}

/// The dump's entry for this volume of this node.
fn choose<'e>(
    entries: &'e [Entry],
    resource: &Resource,
    volume: &Volume,
    file: &Path,
) -> Result<(&'e Entry, &'e Metadata), CliError> {
    let all = entries
        .iter()
        .filter_map(|e| Some((e, e.metadata.as_ref()?)));
    let wanted = (resource.name.as_str(), volume.number, resource.me.id);
    let mut fitting = all
        .clone()
        .filter(|(_, m)| (m.resource.as_str(), m.volume, m.node_id) == wanted);
    match (fitting.next(), fitting.next()) {
        (Some(entry), None) => return Ok(entry),
        (Some(_), Some(_)) => {
            let what = format!("{} has volume {} twice", file.display(), volume.number);
            return Err(CliError::new(Code::Metadata, what, "leave one of them"));
        }
        (None, _) => {}
    }
    let text = |(r, v, n): (&str, u16, u8)| format!("resource {r}, volume {v}, node id {n}");
    let there: Vec<String> = all
        .map(|(_, m)| text((&m.resource, m.volume, m.node_id)))
        .collect();
    let there = match there.as_slice() {
        [] => "it has no metadata at all: what was dumped could not be read".to_owned(),
        list => format!("it has those of {}", list.join("; ")),
    };
    let what = format!(
        "{} has no metadata of {}: {there}",
        file.display(),
        text(wanted)
    );
    let next =
        "take the dump of this node's disk; see --node, and `name` and `id` in the configuration";
    Err(CliError::new(Code::Metadata, what, next))
}

/// A volume that nothing stands in the way of.
struct Plan {
    number: u16,
    place: Place,
    image: Image,
    taken: String,
    /// What is overwritten by force.
    overwritten: Vec<String>,
}

fn plan(
    resource: &Resource,
    volume: &Volume,
    (entry, metadata): (&Entry, &Metadata),
    file: &Path,
    how: How,
) -> Result<Plan, CliError> {
    let refused = |what: String, next: &str| CliError::new(Code::Metadata, what, next);
    let place = Place::open(volume, |path| open_exclusive(path, "1G"))?;
    // Before room is made for as many bits as the file claims.
    if metadata.disk_size > place.disk.size {
        let what = format!(
            "{} has {} bytes, {} was taken of a disk of {}: it is another disk, or it has shrunk",
            place.disk.path.display(),
            place.disk.size,
            file.display(),
            metadata.disk_size
        );
        let next = "take a disk of that size; or `twinblk create-md` and a full sync from the peer";
        return Err(refused(what, next));
    }
    let mut image = metadata.to_image().map_err(|e| {
        let next = "the file was changed, or damaged: take another dump";
        refused(format!("{}: {e}", file.display()), next)
    })?;
    let peers: Vec<NodeId> = resource.peers.iter().map(|p| NodeId(p.id)).collect();
    if let Some(finding) = check_configured(&image.superblock, &peers)
        .into_iter()
        .find(|f| f.wrong)
    {
        return Err(refused(
            format!("{}: {}", file.display(), finding.text),
            finding.next,
        ));
    }
    let doubt = match (entry.in_use, entry.wrong.first()) {
        (true, _) => Some("it was taken while a daemon used the disk".to_owned()),
        (_, Some(wrong)) => Some(format!(
            "the metadata were damaged when it was taken: {wrong}"
        )),
        _ => None,
    };
    if let Some(doubt) = doubt.filter(|_| how.exact) {
        return Err(refused(
            format!("{} cannot be believed: {doubt}", file.display()),
            "restore it without --exact: the copy then needs a full sync",
        ));
    }
    check_sizes(&place, &image, file)?;
    let overwritten = look(&place, &image, how.force)?;
    if !how.exact {
        image.superblock.flags.remove(MdFlags::CONSISTENT);
        image.superblock.flags.remove(MdFlags::WAS_UP_TO_DATE);
        for bitmap in &mut image.bitmaps {
            bitmap.set_all();
        }
    }
    Ok(Plan {
        number: volume.number,
        place,
        image,
        taken: entry.taken.clone(),
        overwritten,
    })
}

/// Whether the dump is of a disk like this one.
fn check_sizes(place: &Place, image: &Image, file: &Path) -> Result<(), CliError> {
    let layout = &image.superblock.layout;
    let (disk, target) = (&place.disk, place.target());
    let refused = |what: String, next: String| Err(CliError::new(Code::Metadata, what, next));
    let (shown, dump) = (disk.path.display(), file.display());
    if layout.placement != place.placement() {
        let what = format!(
            "{dump} has {} metadata, the configuration says {}",
            placement_word(layout.placement),
            placement_word(place.placement())
        );
        let next = "correct meta-disk in the configuration; metadata cannot change their place, because \
                    the usable size would change";
        return refused(what, next.to_owned());
    }
    let end = disk.size / BLOCK64 * BLOCK64;
    if end > layout.disk_size && layout.placement == Placement::Internal {
        let what = format!(
            "{shown} has {} bytes, {dump} was taken of a disk of {}: it is another disk, or it has grown, \
             and internal metadata belong to its end",
            disk.size, layout.disk_size
        );
        let next = format!(
            "if it has grown: `twinblk move-md` if the old metadata are still there; else give it its old \
             size of {} bytes, restore, let it grow again, and move them",
            layout.disk_size
        );
        return refused(what, next);
    }
    let is_file = target.file.metadata().is_ok_and(|m| m.is_file());
    let needed = layout.metadata_len();
    if layout.placement == Placement::External && !is_file && target.size < needed {
        return Err(meta_too_small(target, disk, needed, layout.slots));
    }
    Ok(())
}

/// Refuses to overwrite what is worth something, or says what is overwritten. Damaged metadata are
/// what a dump is for.
fn look(place: &Place, image: &Image, force: bool) -> Result<Vec<String>, CliError> {
    let target = place.target();
    let mut found = Vec::new();
    if let Ok((present, _)) = place.read() {
        let present = &present.superblock;
        found.push(CliError::new(
            Code::Metadata,
            format!(
                "{} holds valid twinblk metadata of {}, sequence {}; the dump has sequence {}",
                target.path.display(),
                owner(present),
                present.sequence,
                image.superblock.sequence
            ),
            "valid metadata know more than a dump of former times: `twinblk up` uses them. --force \
             overwrites them",
        ));
    } else if let Some(mut other) = old_metadata(target).filter(|e| !e.what.contains("damaged")) {
        other.next = "see what they are before you overwrite them with --force".to_owned();
        found.push(other);
    }
    // On the data's disk a file system is expected, as long as it ends where the metadata begin.
    let reserved = match place.placement() {
        Placement::Internal => image.superblock.layout.data_size,
        Placement::External => 0,
    };
    for thing in find(&Probe::new(&target.file, target.size)) {
        if thing.end > reserved {
            found.push(CliError::new(
                Code::Metadata,
                format!(
                    "{} holds {} of {}, which reaches into the place of the metadata",
                    target.path.display(),
                    thing.what,
                    size(thing.end)
                ),
                "this is perhaps another disk; --force overwrites that part of it",
            ));
        }
    }
    if force {
        return Ok(found.into_iter().map(|e| e.what).collect());
    }
    found.into_iter().next().map_or(Ok(Vec::new()), Err)
}

fn carry_out(resource: &Resource, plan: &Plan, file: &Path, how: How) -> Result<String, CliError> {
    let (target, image) = (plan.place.target(), &plan.image);
    let not_written = |why: &str| {
        CliError::new(
            Code::Metadata,
            format!(
                "the metadata could not be written to {}: {why}",
                target.path.display()
            ),
            "the disk has no valid metadata now; repair it and repeat",
        )
    };
    let written = image.write(&mut |step| target.step(step));
    written.map_err(|e| not_written(&e.to_string()))?;
    // What cannot be read back now will not be there after a crash either. A file may have grown.
    let place = Place {
        disk: plan.place.disk.again()?,
        meta: plan.place.meta.as_ref().map(Disk::again).transpose()?,
    };
    let (back, warnings) = place.read().map_err(|e| not_written(&e.to_string()))?;
    let node = NodeId(resource.me.id);
    verify_identity(
        &back.superblock,
        &resource.name,
        VolumeId(plan.number),
        node,
    )
    .map_err(|e| not_written(&e.to_string()))?;
    if let Some(warning) = warnings.first() {
        return Err(not_written(warning));
    }
    Ok(report(resource, plan, file, how))
}

fn report(resource: &Resource, plan: &Plan, file: &Path, how: How) -> String {
    let (name, layout) = (&resource.name, &plan.image.superblock.layout);
    let mut out = String::new();
    for what in &plan.overwritten {
        out += &format!("{name}: by force: {what}\n");
    }
    let taken = match plan.taken.as_str() {
        "" => String::new(),
        time => format!(", taken {time}"),
    };
    out += &format!(
        "{name}: metadata of volume {} restored for {} from {}{taken}\n",
        plan.number,
        plan.place.disk.path.display(),
        file.display()
    );
    if how.exact {
        let bits: u64 = plan.image.bitmaps.iter().map(|b| b.count_set()).sum();
        out += &format!(
            "{name}: as the dump says, {} out of sync. What was written to the disk after it was taken is \
             not in it: if there was anything, this copy can pass for what it is not; `twinblk \
             invalidate {name}` makes it follow the peer\n",
            size(bits * u64::from(layout.bitmap_block))
        );
    } else {
        out += &format!(
            "{name}: nothing tells what was written after the dump was taken, so this copy counts as \
             Inconsistent and all of it as out of sync\n\
             next: `twinblk up {name}`, and the peer overwrites this copy in full. If no other copy is \
             left: `twinblk primary --force {name}` declares these data good\n"
        );
    }
    out
}

#[cfg(test)]
#[path = "restore_md_tests.rs"]
mod tests;
