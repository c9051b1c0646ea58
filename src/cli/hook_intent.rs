//! Who called `hook` last, and what for: a file beside the control socket. A call that waits gives up
//! when a later one wants something else, so that a flapping daemon does not leave both behind.

use super::exit::{CliError, Code};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// What this call wants.
#[derive(Debug)]
pub(super) struct Intent {
    path: PathBuf,
    resource: String,
    /// The number of the first call in a row that wants the same.
    mine: u64,
    wanted: &'static str,
}

impl Intent {
    /// Writes down what this call wants. Calls that want what the one before wanted have its number.
    pub(super) fn declare(
        control: &Path,
        resource: &str,
        wanted: &'static str,
    ) -> Result<Self, CliError> {
        let directory = control.parent().unwrap_or(Path::new("."));
        let path = directory.join(format!("hook-{resource}"));
        let failed = |e: std::io::Error| {
            CliError::new(
                Code::Other,
                format!("{} cannot be written: {e}", path.display()),
                "run it as root, or as whoever runs the daemon; it lies beside the control socket",
            )
        };
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        let (number, last) = read(&mut file).map_err(failed)?;
        let mine = if last == wanted { number } else { number + 1 };
        file.rewind().map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        file.write_all(format!("{mine} {wanted}\n").as_bytes())
            .map_err(failed)?;
        Ok(Self {
            path,
            resource: resource.to_owned(),
            mine,
            wanted,
        })
    }

    /// Nobody has called for the opposite since.
    pub(super) fn still_holds(&self) -> Result<(), CliError> {
        let state = File::open(&self.path).and_then(|mut file| {
            flock(&file, FlockOperation::LockShared)?;
            read(&mut file)
        });
        match state {
            // Somebody cleaned up: nobody wants the opposite.
            Err(_) => Ok(()),
            Ok((number, _)) if number == self.mine => Ok(()),
            Ok((_, last)) => Err(CliError::new(
                Code::State,
                format!(
                    "`hook {} {}` was overtaken by a later call for `{last}`",
                    self.resource, self.wanted
                ),
                "nothing, if that was meant; else look at what calls it",
            )),
        }
    }
}

fn read(file: &mut File) -> std::io::Result<(u64, String)> {
    let mut text = String::new();
    // What is no text was not written by us, and counts as nothing.
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes)?;
    text.push_str(&String::from_utf8_lossy(&bytes));
    let (number, wanted) = text.trim().split_once(' ').unwrap_or(("0", ""));
    Ok((number.parse().unwrap_or(0), wanted.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_call_counts_and_equals_go_together() {
        let dir = tempfile::tempdir().expect("a directory");
        let control = dir.path().join("control");
        let up = Intent::declare(&control, "r0", "up").expect("it is written");
        let again = Intent::declare(&control, "r0", "up").expect("it is written");
        let other = Intent::declare(&control, "r1", "down").expect("it is written");
        up.still_holds().expect("two that want the same");
        again.still_holds().expect("two that want the same");
        let down = Intent::declare(&control, "r0", "down").expect("it is written");
        let error = up.still_holds().expect_err("overtaken");
        assert!(error.what.contains("later call for `down`"), "{error:?}");
        down.still_holds().expect("it is the last");
        other.still_holds().expect("another resource");
        Intent::declare(&control, "r0", "up").expect("it is written");
        up.still_holds()
            .expect_err("what was given up stays given up");
    }

    #[test]
    fn garbage_counts_as_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let control = dir.path().join("control");
        std::fs::write(dir.path().join("hook-r0"), [0xff, 0, 7]).expect("a file");
        let intent = Intent::declare(&control, "r0", "up").expect("it is written over");
        intent.still_holds().expect("it is the last");
    }
}
