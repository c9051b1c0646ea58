//! For tests of the verbs that work on metadata: a directory with the configuration of r0 and a disk
//! for alpha.

use super::create_md::create;
use super::disk::{Place, open_to_read};
use super::dump_md;
use super::exit::CliError;
use crate::config;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twinblk_engine::metadata::image::{Image, Step};
use twinblk_engine::metadata::superblock::MdFlags;

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
}

impl Bench {
    /// With fresh metadata.
    pub(super) fn new(bytes: u64, meta: &str) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        File::create(bench.disk()).unwrap().set_len(bytes).unwrap();
        bench.configure(meta, 3);
        create(bench.path(), Some("alpha"), "r0", false, 1).unwrap();
        bench
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.path().join("r0.img")
    }

    pub(super) fn file(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(self.disk()).unwrap()
    }

    pub(super) fn resize(&self, bytes: u64) {
        self.file().set_len(bytes).unwrap();
    }

    pub(super) fn configure(&self, meta: &str, id: u8) {
        let node = |name: &str, id: u8, disk: PathBuf, meta: &str| {
            format!(
                "[node.{name}]\nid = {id}\naddress = \"127.0.0.{}\"\ndisk = \"{}\"\n\
                 meta-disk = \"{meta}\"\n",
                id + 1,
                disk.display()
            )
        };
        let text = format!(
            "[resource]\nname = \"r0\"\nshared-secret = \"x\"\n{}{}",
            node("alpha", id, self.disk(), meta),
            node("bravo", 5, self.path().join("none.img"), "internal")
        );
        std::fs::write(self.path().join("r0.toml"), text).unwrap();
    }

    /// What is on the disk, as a daemon would read it.
    pub(super) fn image(&self) -> Image {
        let config = config::load(self.path(), Some("alpha")).unwrap();
        let volume = &config.resources[0].me.volumes[0];
        Place::open(volume, open_to_read).unwrap().read().unwrap().0
    }

    /// Makes a past for the copy: it was UpToDate, agreed on a size, and a peer lacks some blocks.
    pub(super) fn live(&self) -> Image {
        let mut image = self.image();
        let sb = &mut image.superblock;
        sb.flags = MdFlags::CONSISTENT;
        sb.flags.insert(MdFlags::WAS_UP_TO_DATE);
        sb.current = 0xcafe_0000;
        sb.peers[5].bitmap = 0xbeef_0000;
        sb.sequence = 20;
        sb.agreed_size = sb.layout.data_size;
        image.bitmaps[0].merge_run(7, 5);
        image.activity_log[4096] = 9;
        let config = config::load(self.path(), Some("alpha")).unwrap();
        let place = Place::open(&config.resources[0].me.volumes[0], |path| {
            super::disk::open_exclusive(path, "1G")
        });
        let place = place.unwrap();
        image
            .write(&mut |step: Step<'_>| place.target().step(step))
            .unwrap();
        image
    }

    /// What `dump-md --json` prints, in a file.
    pub(super) fn dump(&self) -> PathBuf {
        let looked = dump_md::look(self.path(), Some("alpha"), "r0").unwrap();
        let list: Vec<_> = looked.iter().map(dump_md::json).collect();
        let file = self.path().join("r0.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&list).unwrap()).unwrap();
        file
    }

    /// Overwrites both superblocks and a bitmap page.
    pub(super) fn damage(&self) {
        let layout = self.image().superblock.layout;
        for at in layout
            .superblock_offsets
            .into_iter()
            .chain([layout.bitmap_offset])
        {
            self.file().write_all_at(b"garbage", at + 200).unwrap();
        }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        std::fs::read(self.disk()).unwrap()
    }
}

/// Everything an error says.
pub(super) fn words(error: &CliError) -> String {
    error.to_string()
}
