//! The shared secret: where it is written, who may read it.

use super::error::{At, Problem, Spot};
use super::file::SecretSource;
use super::types::Secret;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const MAKE_ONE: &str = "`openssl rand -hex 32` makes one; both nodes need the same";

/// What to say where there is no secret.
pub(super) fn help() -> String {
    format!("peers prove to each other that they know it. {MAKE_ONE}")
}

/// The secret of a resource.
pub(super) fn read(
    source: &At<SecretSource>,
    warnings: &mut Vec<String>,
) -> Result<Secret, Problem> {
    match &source.value {
        SecretSource::Text(text) => {
            if others_may(&source.spot.file) == Some(true) {
                warnings.push(format!(
                    "{} holds a secret and every user of this machine may read it: \
                     `chmod 640 {0}`, or use shared-secret-file",
                    source.spot.file.display()
                ));
            }
            Ok(Secret(text.clone().into_bytes()))
        }
        SecretSource::File(path) => read_file(path, &source.spot),
    }
}

fn read_file(path: &Path, spot: &Spot) -> Result<Secret, Problem> {
    let shown = path.display();
    let mut bytes = std::fs::read(path).map_err(|e| {
        let help = format!("{MAKE_ONE}: `umask 077; openssl rand -hex 32 > {shown}`");
        Problem::at(spot, format!("the secret file {shown} cannot be read: {e}")).help(help)
    })?;
    if others_may(path) == Some(true) {
        let message = format!("every user of this machine may use the secret file {shown}");
        return Err(Problem::at(spot, message).help(format!("`chmod 600 {shown}`")));
    }
    let end = bytes.trim_ascii_end().len();
    bytes.truncate(end);
    if bytes.is_empty() {
        let message = format!("the secret file {shown} is empty");
        return Err(Problem::at(spot, message).help(MAKE_ONE));
    }
    Ok(Secret(bytes))
}

/// Whether users other than the owner and the group may read or write a file.
fn others_may(path: &Path) -> Option<bool> {
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o006 != 0)
}
