//! Whole files in, configurations or messages out.

mod cross;
mod docs;
mod good;
mod wrong;

use super::*;
use std::os::unix::fs::PermissionsExt;

/// Design's sample.
pub(super) const SAMPLE: &str = r#"
[resource]
name = "r0"
protocol = "C"
shared-secret = "0123456789abcdef"

[node.alpha]
id = 0
address = "127.0.0.1:7789"
disk = "/srv/alpha/r0.img"
meta-disk = "internal"
export = "unix:/run/twinblk/r0.sock"

[node.bravo]
id = 1
address = "127.0.0.2:7789"
disk = "/srv/bravo/r0.img"
meta-disk = "internal"
export = "unix:/run/twinblk-b/r0.sock"
"#;

/// A directory with the given files, loaded as `node`.
pub(super) fn load_files(files: &[(&str, &str)], node: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write a file");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, private).expect("set permissions");
    }
    let prefix = format!("{}/", dir.path().display());
    load(dir.path(), Some(node)).map_err(|e| e.to_string().replace(&prefix, ""))
}

/// One file, loaded as alpha.
pub(super) fn load_text(text: &str) -> Result<Config, String> {
    load_files(&[("r0.toml", text)], "alpha")
}

/// The only resource of a file, loaded as alpha.
pub(super) fn resource(text: &str) -> Resource {
    let mut config = load_text(text).unwrap_or_else(|e| panic!("{e}"));
    config.resources.remove(0)
}

/// The message about a file that is wrong.
pub(super) fn refusal(text: &str) -> String {
    match load_text(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(message) => message,
    }
}

/// The sample with `from` replaced by `to`.
pub(super) fn sample_with(from: &str, to: &str) -> String {
    assert!(SAMPLE.contains(from), "{from} is not in the sample");
    SAMPLE.replacen(from, to, 1)
}

/// The sample with more lines at its end.
pub(super) fn sample_and(more: &str) -> String {
    format!("{SAMPLE}{more}")
}
