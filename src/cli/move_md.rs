//! `move-md`: internal metadata to the new end of a disk that has grown. Nothing is written before
//! everything is known to be good; a power cut leaves the old metadata or the new ones.

use super::args::MoveMd;
use super::create_md::{names, owner};
use super::disk::{Device, Disk, Place, open_exclusive};
use super::exit::{CliError, Code};
use super::human::size;
use super::print;
use crate::config::{self, MetaDisk, Resource, Volume};
use std::path::Path;
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::image::{Image, MoveError, erase, write_moved};
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::metadata::open::{OpenError, read_superblock, verify_identity};
use twinblk_engine::metadata::search::{Trace, at_old_size, scan};
use twinblk_engine::metadata::superblock::Superblock;

/// Disks from this size on are not searched within a blink: it is said that it may take long.
const LARGE: u64 = 8 << 30;

/// Runs the verb.
pub(super) fn run(args: &MoveMd) -> Result<(), CliError> {
    let (directory, node) = (&args.local.config, args.local.node.as_deref());
    for name in names(directory, node, &args.resource.name)? {
        let text = move_all(directory, node, &name, args.old_size).map_err(|e| e.about(&name))?;
        print(&text)?;
    }
    Ok(())
}

/// Moves the metadata of all of a resource's volumes on this node; tells what was done.
pub(super) fn move_all(
    directory: &Path,
    node: Option<&str>,
    name: &str,
    old_size: Option<u64>,
) -> Result<String, CliError> {
    let config = config::load(directory, node)?;
    let mut out = String::new();
    for resource in config.resources.iter().filter(|r| r.name == name) {
        for volume in &resource.me.volumes {
            out += &move_one(resource, volume, old_size)?;
        }
    }
    Ok(out)
}

fn move_one(
    resource: &Resource,
    volume: &Volume,
    old_size: Option<u64>,
) -> Result<String, CliError> {
    let name = &resource.name;
    if volume.meta != MetaDisk::Internal {
        let what = format!(
            "the metadata of {} are external ({}): they do not move when the disk grows",
            volume.disk.display(),
            volume.meta
        );
        let next = "there is nothing to do; `twinblk check-md` tells whether they are sound";
        return Err(CliError::new(Code::State, what, next));
    }
    let place = Place::open(volume, |path| open_exclusive(path, "1G"))?;
    let disk = &place.disk;
    let is_ours = |sb: &Superblock| {
        let (volume, node) = (VolumeId(volume.number), NodeId(resource.me.id));
        verify_identity(sb, name, volume, node)
    };
    match place.read() {
        Ok((image, _)) => {
            is_ours(&image.superblock).map_err(|e| refused(disk, &e.to_string(), ""))?;
            return in_place(name, disk, &image.superblock, old_size);
        }
        // All that a move can mend.
        Err(
            OpenError::NoMetadata
            | OpenError::Grown { .. }
            | OpenError::CutOff { .. }
            | OpenError::NotItsOwn { .. }
            | OpenError::Overwritten
            | OpenError::BothDamaged(..),
        ) => {}
        Err(e) => return Err(refused(disk, &e.to_string(), "")),
    }
    let found = match old_size {
        Some(old) => at(disk, old)?,
        None => search(disk, &|sb| is_ours(sb).is_ok())?,
    };
    is_ours(&found).map_err(|e| refused(disk, &e.to_string(), "nothing was written"))?;
    carry_out(name, disk, &found)
}

/// There is nothing to move. After a power cut in the middle the old metadata may still be there.
fn in_place(
    name: &str,
    disk: &Disk,
    present: &Superblock,
    old_size: Option<u64>,
) -> Result<String, CliError> {
    let text = format!(
        "{name}: the metadata are at the end of {} already\n",
        disk.path.display()
    );
    let left = old_size
        .filter(|&old| old < present.layout.data_size)
        .and_then(|old| at_old_size(&mut Device(&disk.file), old).ok())
        .filter(|old| old.device_uuid == present.device_uuid && old.sequence < present.sequence);
    let Some(left) = left else { return Ok(text) };
    erase(&left.layout, &mut |step| disk.step(step)).map_err(|e| not_written(disk, &e))?;
    Ok(text + &format!("{name}: those left over at its old end were erased\n"))
}

/// The metadata where the administrator says that the end was.
fn at(disk: &Disk, old: u64) -> Result<Superblock, CliError> {
    if old > disk.size {
        let error = MoveError::Shrunk {
            was: old,
            now: disk.size,
        };
        return Err(not_moved(disk, &error));
    }
    at_old_size(&mut Device(&disk.file), old).map_err(|e| {
        let what = match e {
            OpenError::NoMetadata => format!("no metadata end at {old} bytes"),
            other => other.to_string(),
        };
        refused(
            disk,
            &what,
            "without --old-size the whole disk is searched for them",
        )
    })
}

/// The metadata nearest to the end that belong to this volume.
fn search(disk: &Disk, is_ours: &dyn Fn(&Superblock) -> bool) -> Result<Superblock, CliError> {
    let (mut strangers, mut pages) = (Vec::new(), None);
    if disk.size >= LARGE {
        eprintln!(
            "twinblk: searching {} of {} for metadata, from the end; --old-size BYTES spares that, and it \
             may be interrupted",
            size(disk.size),
            disk.path.display()
        );
    }
    let found = scan(
        &mut Device(&disk.file),
        0,
        disk.size,
        &mut |trace| match trace {
            Trace::Superblock(sb) if is_ours(sb) => true,
            Trace::Superblock(sb) => {
                strangers.push(owner(sb));
                false
            }
            Trace::Pages(at) => {
                pages = pages.or(Some(*at));
                false
            }
        },
    );
    if let Some(Trace::Superblock(found)) = found {
        return Ok(*found);
    }
    let (what, next) = match (strangers.first(), pages) {
        (Some(owner), _) => (
            format!("the only metadata found are of {owner}: this is another resource's disk"),
            "correct `disk` in the configuration",
        ),
        (None, Some(at)) => (
            format!(
                "there are bitmap pages, the last at byte {at}, but no superblock: the disk has shrunk, \
                 and the superblocks and the end of the data lay behind its present end, or they were \
                 overwritten"
            ),
            "give the disk its old size again and see whether they come back; or `twinblk restore-md` a \
             dump; or `twinblk create-md` and a full sync from the peer",
        ),
        (None, None) => (
            "there are no metadata anywhere on it; if it has shrunk, they lay behind its present end"
                .to_owned(),
            "`twinblk restore-md` puts a dump back; else `twinblk create-md` and a full sync from the \
             peer",
        ),
    };
    Err(refused(disk, &what, next))
}

fn carry_out(name: &str, disk: &Disk, found: &Superblock) -> Result<String, CliError> {
    let was = found.layout.disk_size;
    let read = Image::read(&mut Device(&disk.file), was, was, Placement::Internal);
    let (old, warnings) = read.map_err(|e| refused(disk, &e.to_string(), ""))?;
    let moved = old.moved(disk.size).map_err(|e| not_moved(disk, &e))?;
    let layout = &moved.superblock.layout;
    write_moved(&moved, &old.superblock.layout, &mut |step| disk.step(step))
        .map_err(|e| not_written(disk, &e))?;
    // What cannot be read back now will not be there after a crash either.
    let device = &mut Device(&disk.file);
    let back = read_superblock(device, disk.size, Placement::Internal);
    if back.as_ref().map(|(sb, _)| sb) != Ok(&moved.superblock) {
        let what = "the metadata were written and do not read back as written";
        return Err(refused(
            disk,
            what,
            "replace the disk; a full sync from the peer fills it",
        ));
    }
    let mut out = String::new();
    for warning in warnings {
        out += &format!("{name}: warning: {warning}\n");
    }
    out += &format!(
        "{name}: the metadata of {} were moved from byte {was} to its end at {}\n",
        disk.path.display(),
        disk.size
    );
    out += &format!(
        "  usable    {} ({} bytes), before {} bytes\n",
        size(layout.data_size),
        layout.data_size,
        old.superblock.layout.data_size
    );
    if moved.superblock.agreed_size != 0 {
        out += &format!(
            "  the device keeps its agreed size of {} bytes\n",
            moved.superblock.agreed_size
        );
    }
    Ok(out)
}

fn not_moved(disk: &Disk, error: &MoveError) -> CliError {
    let next = match error {
        MoveError::TooLittle { needed, .. } => format!(
            "grow the disk to {needed} bytes or more; or give it its old size again, and it works as \
             before. Nothing was written"
        ),
        MoveError::Shrunk { was, now } => format!(
            "lost are the last {} bytes: the metadata, which say what this copy is worth, and the end of \
             the data. Give the disk its old size again and see whether they come back. Else `twinblk \
             create-md` and a full sync from the peer, which works only if what is left is as large as \
             the device",
            was - now
        ),
        _ => String::new(),
    };
    refused(disk, &error.to_string(), &next)
}

fn not_written(disk: &Disk, error: &std::io::Error) -> CliError {
    refused(
        disk,
        &format!("the metadata could not be written: {error}"),
        "the old ones or the new ones are still whole: repeat the command when the disk works",
    )
}

fn refused(disk: &Disk, what: &str, next: &str) -> CliError {
    let what = format!("{}: {what}", disk.path.display());
    CliError::new(Code::Metadata, what, next)
}

#[cfg(test)]
#[path = "move_md_tests.rs"]
mod tests;
