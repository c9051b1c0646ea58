//! Other people's NBD clients against a real pair: fio, nbdcopy, qemu-io, qemu-img, nbdinfo and libnbd's
//! Python. After each, when all is quiet, both disks are equal byte for byte.

#[path = "../harness/mod.rs"]
mod harness;

mod fio;
mod flags;
mod overlap;
mod qemu;
mod whole_disk;

use harness::stage::Stage;
use std::path::Path;
use std::process::Command;

/// How libnbd, fio and QEMU name the export of a node.
fn uri(stage: &Stage, node: usize) -> String {
    format!(
        "nbd+unix:///r0?socket={}",
        stage.nodes[node].export.display()
    )
}

/// Runs a Python script with the connected libnbd handles `h` (structured replies, both contexts) and
/// `plain` (simple replies only), and `uri`.
fn python(uri: &str, script: &str) -> String {
    let prelude = "\
import nbd, sys, os
uri = sys.argv[1]
def connect(structured=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context('base:allocation')
        h.add_meta_context('twinblk:dirty')
    h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_BOUNDS & ~nbd.STRICT_ALIGN & ~nbd.STRICT_FLAGS & ~nbd.STRICT_COMMANDS)
    h.connect_uri(uri)
    return h
def errno_of(f):
    try:
        f()
    except nbd.Error as e:
        return e.errnum and __import__('errno').errorcode[e.errnum]
    return None
h = connect()
plain = connect(False)
";
    harness::tools::run(
        Command::new("/usr/bin/python3")
            .arg("-c")
            .arg(format!("{prelude}{script}"))
            .arg(uri),
    )
}

/// A file with content that repeats nowhere.
fn random_file(path: &Path, size: u64, seed: u64) {
    let mut bytes = vec![0; usize::try_from(size).expect("fits")];
    harness::seeds::Rng(seed).fill(&mut bytes);
    std::fs::write(path, bytes).expect("a file");
}
