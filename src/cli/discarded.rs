//! `discarded`: what a node saved before its copy was given up in a split brain: look at it, verify it,
//! get the data back. Needs no daemon.

use super::args::{Discarded, Extract};
use super::exit::{CliError, Code};
use super::human::size;
use super::print;
use crate::discarded::format::{Damage, Record, Side};
use crate::discarded::read::{Reader, Total};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

/// Zeroes are written so many at a time.
const ZEROES: usize = 1 << 20;

/// Runs the verb.
pub(super) fn run(verb: &Discarded) -> Result<(), CliError> {
    match verb {
        Discarded::Show { file, list } => show(file, *list),
        Discarded::Verify { file } => {
            let total = read(file, |_, _| Ok(()))?;
            print(&format!(
                "{}: whole; {} in {} ranges\n",
                file.display(),
                size(total.saved),
                total.ranges
            ))
        }
        Discarded::Extract(args) => extract(args),
    }
}

fn damaged(file: &Path, damage: &Damage) -> CliError {
    let next = match damage {
        Damage::Io(_) | Damage::NoHeader => "name the file that `--save-discarded` wrote",
        Damage::Version(_) => "use the version of twinblk that wrote it, or a newer one",
        _ => "it is not what was written; look for another copy of it",
    };
    CliError::new(Code::Metadata, format!("{} {damage}", file.display()), next)
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>, CliError> {
    let opened = File::open(file).map_err(|e| damaged(file, &Damage::Io(e)))?;
    Reader::new(BufReader::with_capacity(1 << 20, opened)).map_err(|d| damaged(file, &d))
}

/// Reads the file from end to end.
fn read(
    file: &Path,
    seen: impl FnMut(&Record, &[u8]) -> Result<(), Damage>,
) -> Result<Total, CliError> {
    open(file)?.each(seen).map_err(|d| damaged(file, &d))
}

fn show(file: &Path, list: bool) -> Result<(), CliError> {
    let mut reader = open(file)?;
    let header = reader.header().clone();
    let mut ranges = String::new();
    let total = reader.each(|record, data| {
        if list {
            let kind = if data.is_empty() { "zeroes" } else { "data" };
            let whose = if record.own {
                "changed here"
            } else {
                "overwritten only"
            };
            ranges += &format!(
                "  {:>16} {:>10}  {kind}, {whose}\n",
                record.offset, record.len
            );
        }
        Ok(())
    });
    let total = total.map_err(|d| damaged(file, &d))?;
    let tell = |side: &Side| {
        let primary = if side.parted_as_primary {
            ", was Primary when they parted"
        } else {
            ""
        };
        format!(
            "{} (node {}): generation {:016x}, {} bytes changed since generation {:016x}{primary}",
            side.name, side.node, side.current, side.changed, side.base
        )
    };
    let mut text = format!(
        "resource {} volume {}, device of {} bytes\n",
        header.resource, header.volume, header.device_size
    );
    text += &format!("given up:  {}\n", tell(&header.victim));
    text += &format!("kept:      {}\n", tell(&header.kept));
    text += &format!(
        "made:      {} seconds after 1970-01-01 UTC\n",
        header.created
    );
    text += &format!(
        "holds:     {} bytes in {} ranges; {} bytes of them were changed on {}\n",
        total.saved, total.ranges, total.own, header.victim.name
    );
    print(&(text + &ranges))
}

fn extract(args: &Extract) -> Result<(), CliError> {
    // Nothing is written before all of it is known to be whole.
    let whole = read(&args.file, |_, _| Ok(()))?;
    match (&args.to, args.offset, args.length) {
        (Some(image), None, None) => onto(args, image, whole),
        (None, Some(offset), Some(length)) => range(args, offset, length),
        _ => Err(CliError::new(
            Code::Usage,
            "it is not said what to extract",
            "give `--to IMAGE` for all of it, or `--offset` and `--length` for a range on the standard \
             output",
        )),
    }
}

/// Everything that was saved, at its place in an image.
fn onto(args: &Extract, path: &Path, whole: Total) -> Result<(), CliError> {
    let shown = path.display();
    let failed = |e: std::io::Error| CliError::new(Code::Other, format!("{shown}: {e}"), "");
    let device_size = open(&args.file)?.header().device_size;
    let image = match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let image = OpenOptions::new().write(true).create_new(true).open(path);
            let image = image.map_err(failed)?;
            image.set_len(device_size).map_err(failed)?;
            eprintln!(
                "twinblk: {shown} is new: what was not saved reads as zeroes; for the device as it was \
                 extract onto a copy of the node's disk instead"
            );
            image
        }
        Err(e) => return Err(failed(e)),
        Ok(meta) if meta.file_type().is_block_device() && !args.onto_device => {
            return Err(CliError::new(
                Code::State,
                format!("{shown} is a block device: what is on it would be overwritten"),
                "extract onto a copy in a file; or, if nothing uses the device and what is on it may go, \
                 add `--onto-device`",
            ));
        }
        Ok(meta) => {
            if !meta.is_file() && !meta.file_type().is_block_device() {
                let text = format!("{shown} is neither a file nor a block device");
                return Err(CliError::new(Code::Usage, text, "name an image"));
            }
            if meta.is_file() && meta.len() < device_size {
                return Err(CliError::new(
                    Code::State,
                    format!(
                        "{shown} has {} bytes, the device had {device_size}",
                        meta.len()
                    ),
                    "name a copy of the device, or a file that does not exist yet",
                ));
            }
            if args.onto_device {
                eprintln!("twinblk: warning: writing onto {shown}; nothing may be using it");
            }
            OpenOptions::new().write(true).open(path).map_err(failed)?
        }
    };
    let zeroes = vec![0; ZEROES];
    let mut written = 0;
    read(&args.file, |record, data| {
        if args.own_only && !record.own {
            return Ok(());
        }
        let mut at = 0;
        while at < record.len {
            let left = usize::try_from(record.len - at).unwrap_or(usize::MAX);
            let part = match data.is_empty() {
                true => &zeroes[..left.min(ZEROES)],
                false => data,
            };
            image.write_all_at(part, record.offset + at)?;
            at += part.len() as u64;
        }
        written += record.len;
        Ok(())
    })?;
    image.sync_all().map_err(failed)?;
    print(&format!(
        "{written} of {} bytes written to {shown}\n",
        whole.saved
    ))
}

/// A range on the standard output, if all of it was saved.
fn range(args: &Extract, offset: u64, length: u64) -> Result<(), CliError> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    let mut out = std::io::stdout().lock();
    // Looked at first, so that nothing is printed of a range with holes.
    read(&args.file, |record, _| {
        if record.offset <= at && at < record.offset + record.len {
            at = (record.offset + record.len).min(end);
        }
        Ok(())
    })?;
    if at < end {
        return Err(CliError::new(
            Code::State,
            format!("byte {at} was not saved: it was the same on both nodes"),
            "see `twinblk discarded show --list`; the rest is on the device as it is now",
        ));
    }
    read(&args.file, |record, data| {
        let from = offset.max(record.offset);
        let to = end.min(record.offset + record.len);
        let mut at = from;
        while at < to {
            let left = usize::try_from(to - at).unwrap_or(usize::MAX);
            if data.is_empty() {
                let part = left.min(ZEROES);
                out.write_all(&vec![0; part])?;
                at += part as u64;
            } else {
                let start = usize::try_from(at - record.offset).unwrap_or(usize::MAX);
                out.write_all(&data[start..start + left])?;
                at = to;
            }
        }
        Ok(())
    })?;
    out.flush().map_err(|e| damaged(&args.file, &Damage::Io(e)))
}
