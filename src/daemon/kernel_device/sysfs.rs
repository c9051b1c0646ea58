//! What the kernel shows of its nbd devices, in files.

use std::path::Path;

/// Directory of all block devices.
pub(super) const BLOCK: &str = "/sys/block";

/// Whether the nbd driver is there, as a module or built in.
pub(super) fn is_driver_loaded() -> bool {
    Path::new("/sys/module/nbd").exists() || Path::new(BLOCK).join("nbd0").exists()
}

/// A file of a device, without the line's end.
fn read(block: &Path, index: u32, file: &str) -> Option<String> {
    let path = block.join(format!("nbd{index}")).join(file);
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Who serves a device, in the server's own words; `None`: nobody, or a server that said nothing.
pub(super) fn backend(block: &Path, index: u32) -> Option<String> {
    read(block, index, "backend")
}

/// The device with this backend.
pub(super) fn find(block: &Path, wanted: &str) -> Option<u32> {
    let entries = std::fs::read_dir(block).ok()?;
    let mut all: Vec<u32> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("nbd")?.parse().ok()
        })
        .collect();
    all.sort_unstable();
    all.into_iter()
        .find(|index| backend(block, *index).as_deref() == Some(wanted))
}

/// In words, who has a device: what its backend calls itself, and the process that made it.
pub(super) fn owner(block: &Path, index: u32) -> String {
    let pid = read(block, index, "pid");
    let process = pid.map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match name.trim() {
            "" => format!("process {pid}"),
            name => format!("process {pid} ({name})"),
        }
    });
    match (backend(block, index), process) {
        (Some(backend), Some(process)) => format!("{backend}, {process}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "somebody who still has it open".to_owned(),
    }
}

/// The device and its partitions: name and device number ("nbd0", "43:0").
pub(super) fn parts(block: &Path, index: u32) -> Vec<(String, String)> {
    let disk = format!("nbd{index}");
    let mut parts = Vec::new();
    parts.extend(read(block, index, "dev").map(|dev| (disk.clone(), dev)));
    for entry in std::fs::read_dir(block.join(&disk)).into_iter().flatten() {
        let Some(name) = entry.ok().and_then(|e| e.file_name().into_string().ok()) else {
            continue;
        };
        let is_part = name
            .strip_prefix(&format!("{disk}p"))
            .is_some_and(|rest| rest.parse::<u32>().is_ok());
        if is_part {
            let dev = read(block, index, &format!("{name}/dev"));
            parts.extend(dev.map(|dev| (name, dev)));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_backend() {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, text).expect("a file");
        };
        put("nbd0/dev", "43:0\n");
        put("nbd2/dev", "43:32\n");
        put("nbd2/nbd2p1/dev", "43:33\n");
        put("nbd2/nbd2path/dev", "1:1\n");
        put("nbd2/backend", "twinblk r0\n");
        put("nbd10/backend", "twinblk r1\n");
        put("nbd10/pid", "0\n");
        put("sda/backend", "twinblk r2\n");
        let block = dir.path();
        assert_eq!(find(block, "twinblk r1"), Some(10));
        assert_eq!(find(block, "twinblk r0"), Some(2));
        assert_eq!(find(block, "twinblk r2"), None);
        assert_eq!(backend(block, 0), None);
        assert_eq!(
            owner(block, 10),
            "twinblk r1, process 0".to_owned(),
            "a process that is gone has no name"
        );
        let part = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            parts(block, 2),
            [part("nbd2", "43:32"), part("nbd2p1", "43:33")]
        );
    }
}
