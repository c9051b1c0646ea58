//! What guests boot from, made by the scripts `image` and `debian` beside this file, once per test program.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The directory with kernel and the small root, which holds the program under test.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let series = std::env::var("TWINBLK_VM_KERNEL").unwrap_or_else(|_| "6.1".into());
        let more = std::env::var("TWINBLK_VM_PROGRAMS").unwrap_or_default();
        let mut words = vec![&*series, env!("CARGO_BIN_EXE_twinblk")];
        words.extend(more.split_whitespace());
        made("tests/vm/image", &words)
    })
}

/// The file system of a whole Debian.
pub(crate) fn debian() -> &'static Path {
    static DEBIAN: OnceLock<PathBuf> = OnceLock::new();
    DEBIAN.get_or_init(|| made("tests/vm/debian", &[]))
}

/// Runs a script that prints a path.
fn made(script: &str, words: &[&str]) -> PathBuf {
    let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{script}: {e}"));
    let mut text = String::new();
    let mut output = child.stdout.take().expect("piped");
    output.read_to_string(&mut text).expect("text");
    let status = child.wait().expect("a child");
    assert!(status.success(), "{script}: {status}; its words are above");
    PathBuf::from(text.trim())
}
