//! Configuration: TOML, one file per resource, the same files on every node.
//!
//! A file is read key by key ([`file`]), the files are compared with each other ([`check`]), and
//! what comes out is a [`Config`] as this node sees it. Everything that is wrong anywhere is
//! reported at once, with its place.

mod check;
pub(crate) mod diff;
pub(crate) mod dump;
pub(crate) mod error;
mod file;
pub(crate) mod handlers;
mod kinds;
mod later;
mod node;
pub(crate) mod options;
pub(crate) mod parse;
mod reader;
mod secret;
mod settings;
#[cfg(test)]
mod tests;
mod types;
pub(crate) mod values;

pub(crate) use error::ConfigErrors;
pub(crate) use types::{Config, Device, Export, MetaDisk, Node, Resource, Volume};

use error::Problem;
use file::FileResource;
use node::FileNode;
use std::path::{Path, PathBuf};

/// Reads every `*.toml` of `directory` as the node `node`, or as the node named like this host.
pub(crate) fn load(directory: &Path, node: Option<&str>) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let mut files = Vec::new();
    for path in toml_files(directory).map_err(|problem| ConfigErrors(vec![problem]))? {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let (resource, wrong) = file::read(&path, &text);
                files.extend(resource);
                problems.extend(wrong);
            }
            Err(e) => problems.push(Problem::with(&path, format!("cannot be read: {e}"))),
        }
    }
    check::check_all(&files, &mut problems);
    let me = match node_name(&files, node, &host_name()) {
        Ok(me) => me,
        // With broken files, the node may be in one of those.
        Err(problem) if problems.is_empty() => return Err(ConfigErrors(vec![problem])),
        Err(_) => String::new(),
    };
    check::check_local_disks(&files, &me, &mut problems);
    let mut config = Config {
        node_name: me,
        resources: Vec::new(),
        warnings: Vec::new(),
    };
    for file in files {
        let shown = file.file.display().to_string();
        match build(file, &config.node_name, &mut config.warnings, &mut problems) {
            Some(resource) => config.resources.push(resource),
            None => config.warnings.push(format!(
                "{shown}: node `{}` takes no part in this resource",
                config.node_name
            )),
        }
    }
    config.resources.sort_by(|a, b| a.name.cmp(&b.name));
    ConfigErrors::check(problems)?;
    Ok(config)
}

/// The files to read, by name.
fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    let list = std::fs::read_dir(directory).map_err(|e| {
        Problem::with(
            directory,
            format!("the configuration directory cannot be read: {e}"),
        )
        .help("name the right one with --config DIR")
    })?;
    let mut files: Vec<PathBuf> = list
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        // Hidden files are what editors leave behind.
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
        })
        .collect();
    if files.is_empty() {
        return Err(Problem::with(directory, "there is no *.toml here").help(
            "each resource has a file of its own, such as r0.toml; see `docs/configuration.md`",
        ));
    }
    files.sort();
    Ok(files)
}

/// Which node this is.
fn node_name(files: &[FileResource], node: Option<&str>, host: &str) -> Result<String, Problem> {
    let mut names: Vec<&str> = files
        .iter()
        .flat_map(|f| &f.nodes)
        .map(|n| n.name.value.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let wanted = node.unwrap_or(host);
    let short = wanted.split('.').next().unwrap_or(wanted);
    if let Some(name) = names.iter().find(|n| **n == wanted).or(match node {
        // A host may call itself alpha.example where the file says alpha.
        None => names.iter().find(|n| **n == short),
        Some(_) => None,
    }) {
        return Ok((*name).to_owned());
    }
    let message = match node {
        Some(_) => format!("no resource has a node named `{wanted}`"),
        None => format!("no resource has a node named like this host, `{wanted}`"),
    };
    let known = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    let near = error::nearest(wanted, names.iter().copied());
    let near = near
        .map(|n| format!("did you mean `{n}`? "))
        .unwrap_or_default();
    Err(Problem::general(message).help(format!(
        "{near}nodes of the configuration: {known}; choose one with --node NAME"
    )))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// A resource as node `me` sees it; `None` when it takes no part, or when something is wrong (and
/// then a problem says what).
fn build(
    file: FileResource,
    me: &str,
    warnings: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) -> Option<Resource> {
    if !file.nodes.iter().any(|n| n.name.value == me) {
        return None;
    }
    let name = file.name?;
    let secret = match secret::read(&file.secret?, warnings) {
        Ok(secret) => Some(secret),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let mut nodes: Vec<Node> = file.nodes.into_iter().filter_map(build_node).collect();
    nodes.sort_by_key(|n| n.id);
    let index = nodes.iter().position(|n| n.name == me)?;
    Some(Resource {
        name: name.value,
        file: file.file.to_path_buf(),
        secret: secret?,
        me: nodes.remove(index),
        peers: nodes,
        settings: file.settings,
        handlers: file.handlers,
    })
}

fn build_node(node: FileNode) -> Option<Node> {
    let mut volumes: Vec<Volume> = node
        .volumes
        .into_iter()
        .map(|v| Volume {
            number: v.number.value,
            disk: v.disk.value,
            meta: v.meta.value,
            device: v.device.map(|d| d.value),
        })
        .collect();
    volumes.sort_by_key(|v| v.number);
    Some(Node {
        name: node.name.value,
        id: node.id?.value,
        address: node.address?.value,
        exports: node.exports.into_iter().map(|e| e.value).collect(),
        volumes,
    })
}
