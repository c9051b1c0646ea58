//! The `[node.NAME]` tables of a file.

use super::error::{At, Problem, Spot};
use super::file::key_span;
use super::parse;
use super::reader::{Reader, Table};
use super::types::{Address, Device, Export, MetaDisk};
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeString, DeValue};

/// A `[node.NAME]` table.
#[derive(Debug)]
pub(super) struct FileNode {
    pub(super) name: At<String>,
    pub(super) id: Option<At<u8>>,
    pub(super) address: Option<At<Address>>,
    pub(super) exports: Vec<At<Export>>,
    pub(super) volumes: Vec<FileVolume>,
}

/// A volume of a node.
#[derive(Debug)]
pub(super) struct FileVolume {
    pub(super) number: At<u16>,
    pub(super) disk: At<PathBuf>,
    pub(super) meta: At<MetaDisk>,
    pub(super) device: Option<At<Device>>,
}

const NODE_KEYS: [&str; 7] = [
    "id",
    "address",
    "disk",
    "meta-disk",
    "export",
    "device",
    "volume",
];

/// Reads a node's table.
pub(super) fn read_node(
    reader: &mut Reader<'_>,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Option<FileNode> {
    let name = match parse::name(key.get_ref()) {
        Ok(name) => reader.at(name, key.span()),
        Err((message, help)) => {
            reader.bad(key.span(), message, help);
            return None;
        }
    };
    let title = format!("[node.{}]", name.value);
    let table = reader.table(&title, (key, value))?;
    reader.unknown_keys(table, &NODE_KEYS);
    let id = read_id(reader, table);
    let address = reader.parsed(table, "address", parse::address);
    for required in ["id", "address"] {
        require(reader, table, &name.spot, required);
    }
    let exports = read_exports(reader, table);
    let volumes = read_volumes(reader, table, &name.spot);
    Some(FileNode {
        name,
        id,
        address,
        exports,
        volumes,
    })
}

fn require(reader: &mut Reader<'_>, table: Table<'_>, spot: &Spot, key: &str) {
    if !table.entries.contains_key(key) {
        let example = match key {
            "id" => "id = 0",
            "address" => "address = \"10.0.0.1:7789\"",
            _ => "disk = \"/dev/vg0/r0\"",
        };
        let problem = Problem::at(spot, format!("{} has no `{key}`", table.name));
        reader
            .problems
            .push(problem.help(format!("add for example: {example}")));
    }
}

fn read_id(reader: &mut Reader<'_>, table: Table<'_>) -> Option<At<u8>> {
    let value = table.entries.get("id")?;
    let number = value.get_ref().as_integer();
    let number = number.and_then(|i| u8::from_str_radix(i.as_str(), i.radix()).ok());
    match number {
        Some(id @ 0..=15) => Some(reader.at(id, value.span())),
        _ => {
            reader.bad(value.span(), "`id` must be a whole number from 0 to 15", "");
            None
        }
    }
}

fn read_exports(reader: &mut Reader<'_>, table: Table<'_>) -> Vec<At<Export>> {
    let Some(value) = table.entries.get("export") else {
        return Vec::new();
    };
    let one = std::slice::from_ref(value);
    let list = value.get_ref().as_array().map_or(one, |list| list.as_ref());
    let mut exports = Vec::new();
    for item in list {
        let Some(text) = reader.as_string("export", item) else {
            continue;
        };
        match parse::export(&text.value) {
            Ok(export) => exports.push(At {
                value: export,
                spot: text.spot,
            }),
            Err((message, help)) => reader.bad(item.span(), message, help),
        }
    }
    exports
}

/// Volume 0 written directly into the node's table, or `[node.NAME.volume.N]` tables.
fn read_volumes(reader: &mut Reader<'_>, table: Table<'_>, spot: &Spot) -> Vec<FileVolume> {
    let Some(value) = table.entries.get_key_value("volume") else {
        let number = At {
            value: 0,
            spot: spot.clone(),
        };
        return read_volume(reader, table, number).into_iter().collect();
    };
    for key in ["disk", "meta-disk", "device"] {
        if table.entries.contains_key(key) {
            let message = format!("`{key}` beside {}", table.name.replace(']', ".volume]"));
            reader.bad(
                key_span(table.entries, key),
                message,
                "move it into the volume's table",
            );
        }
    }
    let mut volumes = Vec::new();
    let name = table.name.replace(']', ".volume]");
    let Some(list) = reader.table(&name, value) else {
        return volumes;
    };
    for (key, value) in list.entries {
        let title = name.replace(']', &format!(".{}]", key.get_ref()));
        let Some(volume) = reader.table(&title, (key, value)) else {
            continue;
        };
        reader.unknown_keys(volume, &["disk", "meta-disk", "device"]);
        match key.get_ref().parse::<u16>() {
            Ok(number) => {
                let number = reader.at(number, key.span());
                volumes.extend(read_volume(reader, volume, number));
            }
            Err(_) => reader.bad(key.span(), "a volume's name is its number, from 0", ""),
        }
    }
    volumes
}

fn read_volume(reader: &mut Reader<'_>, table: Table<'_>, number: At<u16>) -> Option<FileVolume> {
    require(reader, table, &number.spot, "disk");
    let disk = reader.parsed(table, "disk", |text| parse::absolute("disk", text));
    let meta = if table.entries.contains_key("meta-disk") {
        reader.parsed(table, "meta-disk", parse::meta_disk)?
    } else {
        At {
            value: MetaDisk::Internal,
            spot: number.spot.clone(),
        }
    };
    Some(FileVolume {
        number,
        disk: disk?,
        meta,
        device: reader.parsed(table, "device", parse::device),
    })
}
