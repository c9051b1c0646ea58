//! `create-md`: fresh metadata for this node's volumes of a resource. Looks first, at everything,
//! and writes only when nothing stands in the way.

use super::args::CreateMd;
use super::disk::{Device, Disk, open_exclusive};
use super::exit::{CliError, Code};
use super::human::size;
use super::orders::unknown_resource;
use super::print;
use super::signatures::{Found, Probe, find};
use crate::config::values::show_bytes;
use crate::config::{self, MetaDisk, Resource, Volume};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::create::{CreateParams, create as write_metadata};
use twinblk_engine::metadata::layout::{Layout, LayoutError, Placement};
use twinblk_engine::metadata::open::{OpenError, open, read_superblock, verify_identity};
use twinblk_engine::metadata::search::{Trace, nearby};
use twinblk_engine::metadata::superblock::{DEFAULT_EXTENT, Superblock};

/// Bytes of data per bit of the bitmap.
const BITMAP_BLOCK: u32 = 4096;

/// Bytes before the end of a disk that are searched for metadata of the time before it grew.
const SEARCHED: u64 = 1 << 30;

/// What was done to one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Created {
    volume: u16,
    disk: PathBuf,
    layout: Layout,
    /// What was overwritten by force.
    overwritten: Vec<String>,
}

/// Runs the verb.
pub(super) fn run(args: &CreateMd) -> Result<(), CliError> {
    let (directory, node) = (&args.local.config, args.local.node.as_deref());
    for name in names(directory, node, &args.resource.name)? {
        let (resource, created) = create(directory, node, &name, args.force, args.max_peers)
            .map_err(|e| e.about(&name))?;
        print(&report(&resource, &created))?;
    }
    Ok(())
}

/// The resources that `name` means.
pub(super) fn names(
    directory: &Path,
    node: Option<&str>,
    name: &str,
) -> Result<Vec<String>, CliError> {
    let config = config::load(directory, node)?;
    for warning in &config.warnings {
        eprintln!("twinblk: warning: {warning}");
    }
    match name {
        "all" => Ok(config.resources.into_iter().map(|r| r.name).collect()),
        name if config.resource(name).is_some() => Ok(vec![name.to_owned()]),
        name => Err(unknown_resource(name, &config)),
    }
}

/// Writes the metadata of all of a resource's volumes on this node.
pub(super) fn create(
    directory: &Path,
    node: Option<&str>,
    name: &str,
    force: bool,
    max_peers: u8,
) -> Result<(Resource, Vec<Created>), CliError> {
    let config = config::load(directory, node)?;
    let resource = config
        .resource(name)
        .ok_or_else(|| unknown_resource(name, &config))?;
    let peers = u8::try_from(resource.peers.len()).unwrap_or(u8::MAX);
    let slots = max_peers.max(peers);
    let mut plans = Vec::new();
    for volume in &resource.me.volumes {
        plans.push(plan(volume, slots, force)?);
    }
    let mut created = Vec::new();
    for plan in plans {
        created.push(carry_out(resource, plan)?);
    }
    Ok((resource.clone(), created))
}

/// A volume that nothing stands in the way of.
struct Plan {
    number: u16,
    disk: Disk,
    /// External metadata.
    meta: Option<Disk>,
    layout: Layout,
    overwritten: Vec<String>,
}

fn plan(volume: &Volume, slots: u8, force: bool) -> Result<Plan, CliError> {
    let disk = open_exclusive(&volume.disk, "1G")?;
    let (meta, layout) = match &volume.meta {
        MetaDisk::Internal => (None, Layout::internal(disk.size, BITMAP_BLOCK, slots)),
        MetaDisk::External(path) => {
            let needed = Layout::external(disk.size, None, BITMAP_BLOCK, slots);
            let needed = needed.map_err(|e| too_small(&disk, &e))?.metadata_len();
            let meta = open_exclusive(path, &show_bytes(needed.next_multiple_of(1 << 20)))?;
            // A regular file grows as it is written.
            let is_file = meta.file.metadata().is_ok_and(|m| m.is_file());
            if !is_file && meta.size < needed {
                return Err(meta_too_small(&meta, &disk, needed, slots));
            }
            let layout = Layout::external(disk.size, None, BITMAP_BLOCK, slots);
            (Some(meta), layout)
        }
    };
    let target = meta.as_ref().unwrap_or(&disk);
    let layout = layout.map_err(|e| too_small(target, &e))?;
    let overwritten = look(target, &layout, force)?;
    Ok(Plan {
        number: volume.number,
        disk,
        meta,
        layout,
        overwritten,
    })
}

/// Refuses to overwrite anything that is recognised, or says what is overwritten.
fn look(target: &Disk, layout: &Layout, force: bool) -> Result<Vec<String>, CliError> {
    let mut found = Vec::new();
    found.extend(old_metadata(target));
    for thing in find(&Probe::new(&target.file, target.size)) {
        found.push(refusal(target, layout, &thing));
    }
    if force {
        return Ok(found.into_iter().map(|e| e.what).collect());
    }
    found.into_iter().next().map_or(Ok(Vec::new()), Err)
}

/// Metadata of ours, whatever they belong to.
pub(super) fn old_metadata(target: &Disk) -> Option<CliError> {
    let shown = target.path.display();
    for placement in [Placement::Internal, Placement::External] {
        let what = match read_superblock(&mut Device(&target.file), target.size, placement) {
            Ok((superblock, _)) => format!("twinblk metadata of {}", owner(&superblock)),
            Err(OpenError::BothDamaged(..)) => "damaged twinblk metadata".to_owned(),
            Err(OpenError::NewerVersion { .. }) => "metadata of a newer twinblk".to_owned(),
            Err(OpenError::OlderVersion { .. }) => "metadata of an older twinblk".to_owned(),
            Err(_) => continue,
        };
        return Some(CliError::new(
            Code::Metadata,
            format!("{shown} holds {what} already"),
            "`twinblk dump-md` shows them. `create-md --force` overwrites them: this copy then \
             counts as never synchronised and needs a full sync",
        ));
    }
    displaced_metadata(target)
}

/// Metadata of ours that are not at the end because the disk has grown.
fn displaced_metadata(target: &Disk) -> Option<CliError> {
    let Some(Trace::Superblock(superblock)) =
        nearby(&mut Device(&target.file), target.size, SEARCHED)
    else {
        return None;
    };
    Some(CliError::new(
        Code::Metadata,
        format!(
            "{} holds twinblk metadata of {}, where its end was before it grew from {} to {} bytes",
            target.path.display(),
            owner(&superblock),
            superblock.layout.disk_size,
            target.size
        ),
        "`twinblk move-md` moves them to the end, and nothing is lost. `create-md --force` makes new \
         ones: this copy then counts as never synchronised and needs a full sync",
    ))
}

/// Whose metadata they are.
pub(super) fn owner(superblock: &Superblock) -> String {
    let Superblock {
        resource,
        volume,
        node,
        ..
    } = superblock;
    format!("resource {resource}, {volume}, node id {}", node.0)
}

/// Something of somebody else's is there; does it reach into where the metadata go?
fn refusal(target: &Disk, layout: &Layout, thing: &Found) -> CliError {
    let shown = target.path.display();
    let what = format!("{shown} holds {} of {}", thing.what, size(thing.end));
    let (what, next) = match layout.placement {
        Placement::External => (
            what,
            "metadata on a disk of their own begin at its start and destroy it: name another \
             meta-disk, or overwrite it with --force"
                .to_owned(),
        ),
        Placement::Internal if thing.end <= layout.data_size => (
            what,
            format!(
                "it ends before the metadata would begin, at {} of {} bytes: with --force its data \
                 stay and can be mirrored as they are",
                layout.data_size, target.size
            ),
        ),
        Placement::Internal => {
            let shrink = match thing.shrink {
                "" => String::new(),
                tool => format!(
                    "make it smaller first, to {} bytes ({tool}); or ",
                    layout.data_size
                ),
            };
            (
                format!(
                    "{what}, which reaches into the last {} that the metadata need",
                    size(layout.metadata_len())
                ),
                format!(
                    "{shrink}put the metadata elsewhere (meta-disk = \"/path\"); or destroy the end \
                     of it with --force"
                ),
            )
        }
    };
    CliError::new(Code::Metadata, what, next)
}

fn too_small(disk: &Disk, error: &LayoutError) -> CliError {
    let next = "take a larger disk; 1 MiB is the least that makes sense";
    CliError::new(
        Code::Metadata,
        format!("{}: {error}", disk.path.display()),
        next,
    )
}

/// A device for external metadata that has no room for them.
pub(super) fn meta_too_small(meta: &Disk, disk: &Disk, needed: u64, slots: u8) -> CliError {
    CliError::new(
        Code::Metadata,
        format!(
            "{} has {} bytes: too small for the metadata of {}, which need {needed} bytes ({}; for {} \
             bytes of data and {slots} peer{})",
            meta.path.display(),
            meta.size,
            disk.path.display(),
            size(needed),
            disk.size,
            if slots == 1 { "" } else { "s" }
        ),
        format!(
            "give meta-disk a device of {} or more, or a file, which grows as needed",
            show_bytes(needed.next_multiple_of(1 << 20))
        ),
    )
}

fn carry_out(resource: &Resource, plan: Plan) -> Result<Created, CliError> {
    let Plan {
        number,
        disk,
        meta,
        layout,
        overwritten,
    } = plan;
    let target = meta.as_ref().unwrap_or(&disk);
    let peers: Vec<NodeId> = resource.peers.iter().map(|p| NodeId(p.id)).collect();
    let (volume, node) = (VolumeId(number), NodeId(resource.me.id));
    let params = CreateParams {
        layout: layout.clone(),
        resource: &resource.name,
        volume,
        node,
        peers: &peers,
        device_uuid: random(),
        block_size: resource.block_size(),
        extent_size: DEFAULT_EXTENT,
    };
    write_metadata(params, &mut |offset, data| {
        target.file.write_all_at(data, offset)
    })
    .and_then(|_| target.file.sync_all())
    .map_err(|e| not_written(target, &e.to_string()))?;
    // What cannot be read back now will not be there after a crash either.
    let mut device = Device(&target.file);
    let meta_size = target
        .file
        .metadata()
        .ok()
        .filter(|m| m.is_file())
        .map(|m| m.len());
    open(
        &mut device,
        meta_size.unwrap_or(target.size),
        disk.size,
        layout.placement,
    )
    .and_then(|r| verify_identity(&r.superblock, &resource.name, volume, node))
    .map_err(|e| not_written(target, &e.to_string()))?;
    Ok(Created {
        volume: number,
        disk: disk.path,
        layout,
        overwritten,
    })
}

fn not_written(target: &Disk, why: &str) -> CliError {
    let what = format!(
        "the metadata could not be written to {}: {why}",
        target.path.display()
    );
    CliError::new(
        Code::Metadata,
        what,
        "the disk has no valid metadata now; repair it and repeat",
    )
}

/// Random and not 0.
fn random() -> u64 {
    let mut bytes = [0; 8];
    if getrandom::fill(&mut bytes).is_err()
        && let Ok(mut file) = File::open("/dev/urandom")
    {
        let _ = file.read_exact(&mut bytes);
    }
    u64::from_le_bytes(bytes) | 1
}

fn report(resource: &Resource, created: &[Created]) -> String {
    let name = &resource.name;
    let mut out = String::new();
    for c in created {
        for what in &c.overwritten {
            out += &format!("{name}: by force: {what}\n");
        }
        let (layout, disk) = (&c.layout, c.disk.display());
        let place = match layout.placement {
            Placement::Internal => "at its end",
            Placement::External => "on a disk of their own",
        };
        out += &format!(
            "{name}: metadata of volume {} written for {disk}\n",
            c.volume
        );
        out += &format!(
            "  usable    {} ({} bytes)\n",
            size(layout.data_size),
            layout.data_size
        );
        out += &format!(
            "  metadata  {} {place}, room for {} peer{}\n",
            size(layout.metadata_len()),
            layout.slots,
            if layout.slots == 1 { "" } else { "s" }
        );
    }
    let peers: Vec<&str> = resource.peers.iter().map(|p| p.name.as_str()).collect();
    out += &format!(
        "next: the same on {}; `twinblk up {name}` on both; then `twinblk primary --force {name}` \
         on the node whose data count\n",
        peers.join(", ")
    );
    out
}

#[cfg(test)]
#[path = "create_md_tests.rs"]
mod tests;
