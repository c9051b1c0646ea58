//! Prints the configuration in force as TOML that reads back to the same, except for the secret.

use super::options::{Section, in_section};
use super::types::{MetaDisk, Node, Resource};
use std::fmt::Write;

/// The resource as a file. Options that have their default are comments.
pub(crate) fn dump(resource: &Resource) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_resource(&mut out, resource);
    out
}

fn write_resource(out: &mut String, resource: &Resource) -> std::fmt::Result {
    writeln!(
        out,
        "# {}, as node {} understands it",
        resource.file.display(),
        resource.me.name
    )?;
    writeln!(out, "[resource]")?;
    writeln!(out, "name = {}", quoted(&resource.name))?;
    writeln!(out, "shared-secret = \"…\"")?;
    write_options(out, resource, Section::Resource)?;
    let mut nodes: Vec<&Node> = resource.nodes().collect();
    nodes.sort_by_key(|n| n.id);
    for node in nodes {
        write_node(out, node)?;
    }
    for section in [Section::Net, Section::Disk, Section::Options] {
        writeln!(out, "\n[{}]", section.name())?;
        write_options(out, resource, section)?;
    }
    resource.handlers.write(out)
}

fn write_options(out: &mut String, resource: &Resource, section: Section) -> std::fmt::Result {
    for row in in_section(section) {
        let value = resource.settings.get(row.key);
        let default = if value == row.default { "# " } else { "" };
        writeln!(out, "{default}{} = {value}", row.name)?;
    }
    Ok(())
}

fn write_node(out: &mut String, node: &Node) -> std::fmt::Result {
    let name = if node.name.contains('.') {
        quoted(&node.name)
    } else {
        node.name.clone()
    };
    writeln!(out, "\n[node.{name}]")?;
    writeln!(out, "id = {}", node.id)?;
    writeln!(out, "address = {}", quoted(&node.address.to_string()))?;
    let exports: Vec<String> = node
        .exports
        .iter()
        .map(|e| quoted(&e.to_string()))
        .collect();
    match exports.as_slice() {
        [one] => writeln!(out, "export = {one}")?,
        many => writeln!(out, "export = [{}]", many.join(", "))?,
    }
    for volume in &node.volumes {
        if volume.number != 0 {
            writeln!(out, "[node.{name}.volume.{}]", volume.number)?;
        }
        writeln!(out, "disk = {}", quoted(&volume.disk.display().to_string()))?;
        let meta = match &volume.meta {
            MetaDisk::Internal => "internal".to_owned(),
            MetaDisk::External(path) => path.display().to_string(),
        };
        writeln!(out, "meta-disk = {}", quoted(&meta))?;
        if let Some(device) = &volume.device {
            writeln!(out, "device = {}", quoted(&device.to_string()))?;
        }
    }
    Ok(())
}

/// As a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
