//! Verbs that print a state: role, cstate, dstate, status.

use super::client::Client;
use super::exit::{CliError, Code};
use super::{print, status_text};
use crate::api::ResourceStatus;

/// `role`: this node's.
pub(super) async fn role(client: &Client, name: &str) -> Result<(), CliError> {
    each(client, name, |r| vec![r.role.clone()]).await
}

/// `cstate`: one line per peer.
pub(super) async fn cstate(client: &Client, name: &str) -> Result<(), CliError> {
    each(client, name, connections).await
}

/// `dstate`: one line per volume, this node's disk and then the peers'.
pub(super) async fn dstate(client: &Client, name: &str) -> Result<(), CliError> {
    each(client, name, disks).await
}

/// `status`.
pub(super) async fn status(client: &Client, name: &str, json: bool) -> Result<(), CliError> {
    let list = client.some(name).await?;
    if json {
        let text = serde_json::to_string_pretty(&list)
            .map_err(|e| CliError::new(Code::Other, format!("the state is no JSON: {e}"), ""))?;
        return print(&(text + "\n"));
    }
    if list.is_empty() {
        return print("no resources\n");
    }
    let texts: Vec<String> = list.iter().map(status_text::resource).collect();
    print(&texts.join("\n"))
}

fn connections(resource: &ResourceStatus) -> Vec<String> {
    match resource.peers.as_slice() {
        [peer] => vec![peer.connection.clone()],
        peers => peers
            .iter()
            .map(|p| format!("{} {}", p.name, p.connection))
            .collect(),
    }
}

fn disks(resource: &ResourceStatus) -> Vec<String> {
    let line = |volume: &crate::api::VolumeStatus| {
        let peers = resource.peers.iter().flat_map(|p| &p.volumes);
        let theirs = peers
            .filter(|v| v.volume == volume.volume)
            .map(|v| v.peer_disk.as_str());
        let all: Vec<&str> = std::iter::once(volume.disk.as_str())
            .chain(theirs)
            .collect();
        all.join("/")
    };
    resource.volumes.iter().map(line).collect()
}

/// Prints what `show` says; with `all`, each line after the resource's name.
async fn each(
    client: &Client,
    name: &str,
    show: impl Fn(&ResourceStatus) -> Vec<String>,
) -> Result<(), CliError> {
    print(&text(&client.some(name).await?, name == "all", show)?)
}

fn text(
    list: &[ResourceStatus],
    all: bool,
    show: impl Fn(&ResourceStatus) -> Vec<String>,
) -> Result<String, CliError> {
    let mut out = String::new();
    for resource in list {
        if !resource.up && !all {
            return Err(not_up(resource));
        }
        let lines = if resource.up {
            show(resource)
        } else {
            vec!["down".to_owned()]
        };
        for line in lines {
            if all {
                out += &format!("{} {line}\n", resource.name);
            } else {
                out += &format!("{line}\n");
            }
        }
    }
    Ok(out)
}

/// The resource exists and is not started, or could not be.
pub(super) fn not_up(resource: &ResourceStatus) -> CliError {
    let name = &resource.name;
    let (reason, way_out) = match &resource.suspended {
        Some(why) => (
            format!("{name} is not up on this node: {why}"),
            format!("mend that, then `twinblk up {name}`"),
        ),
        None => (
            format!("{name} is not up on this node"),
            format!("start it with `twinblk up {name}`"),
        ),
    };
    CliError::new(Code::Other, reason, way_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake_daemon::{FakeDaemon, down, resource};

    #[test]
    fn one_resource_prints_its_state_alone() {
        let r0 = [resource("r0")];
        assert_eq!(
            text(&r0, false, |r| vec![r.role.clone()]).unwrap(),
            "Primary\n"
        );
        assert_eq!(text(&r0, false, connections).unwrap(), "Connected\n");
        assert_eq!(text(&r0, false, disks).unwrap(), "UpToDate/UpToDate\n");
        let error = text(&[down("r0")], false, disks).unwrap_err();
        assert_eq!(
            error.to_string(),
            "twinblk: r0 is not up on this node\n  start it with `twinblk up r0`"
        );
        assert_eq!(error.code, 10);
        let mut failed = down("r0");
        failed.suspended = Some("/dev/vg/r0 does not exist".into());
        let text = text(&[failed], false, disks).unwrap_err().to_string();
        assert!(text.contains("/dev/vg/r0 does not exist"), "{text}");
    }

    #[test]
    fn all_resources_print_their_names() {
        let list = [resource("r0"), down("r1")];
        assert_eq!(
            text(&list, true, disks).unwrap(),
            "r0 UpToDate/UpToDate\nr1 down\n"
        );
    }

    #[test]
    fn several_peers_are_told_apart() {
        let mut r0 = resource("r0");
        let mut carol = r0.peers[0].clone();
        carol.name = "carol".into();
        carol.connection = "Connecting".into();
        carol.volumes[0].peer_disk = "DUnknown".into();
        r0.peers.push(carol);
        assert_eq!(connections(&r0), ["bravo Connected", "carol Connecting"]);
        assert_eq!(disks(&r0), ["UpToDate/UpToDate/DUnknown"]);
    }

    #[tokio::test]
    async fn through_the_socket() {
        let daemon = FakeDaemon::start(vec![resource("r0"), down("r1")]).await;
        assert!(role(&daemon.client(), "r0").await.is_ok());
        assert!(status(&daemon.client(), "all", true).await.is_ok());
        assert_eq!(cstate(&daemon.client(), "r1").await.unwrap_err().code, 10);
        assert_eq!(dstate(&daemon.client(), "r2").await.unwrap_err().code, 10);
    }
}
