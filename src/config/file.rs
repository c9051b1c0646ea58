//! One file: TOML to a resource, before anything is compared with other files.

use super::error::{At, Problem, Spot};
use super::handlers::{self, Handlers};
use super::kinds;
use super::later;
use super::node::{FileNode, read_node};
use super::options::{self, Key, Section};
use super::parse;
use super::reader::{Reader, Table, did_you_mean};
use super::secret;
use super::settings::Settings;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Spanned;
use toml::de::DeTable;

/// What a file says of its resource. Parts that could not be read are missing; why is among the
/// problems.
#[derive(Debug)]
pub(super) struct FileResource {
    pub(super) file: Arc<PathBuf>,
    pub(super) name: Option<At<String>>,
    pub(super) secret: Option<At<SecretSource>>,
    pub(super) settings: Settings,
    pub(super) handlers: Handlers,
    /// Where options were written.
    pub(super) written: Vec<(Key, Spot)>,
    pub(super) nodes: Vec<FileNode>,
}

/// Where the secret comes from.
#[derive(Debug)]
pub(super) enum SecretSource {
    Text(String),
    File(PathBuf),
}

const TABLES: [&str; 7] = [
    "resource", "node", "net", "disk", "options", "handlers", "startup",
];
const RESOURCE_KEYS: [&str; 3] = ["name", "shared-secret", "shared-secret-file"];

/// Reads a file. `None` when it cannot be read as TOML at all.
pub(super) fn read(path: &Path, text: &str) -> (Option<FileResource>, Vec<Problem>) {
    let mut reader = Reader {
        file: Arc::new(path.to_owned()),
        text,
        problems: Vec::new(),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let message = error
                .message()
                .lines()
                .next()
                .unwrap_or("not TOML")
                .to_owned();
            reader.bad(error.span().unwrap_or(0..0), message, "");
        }
        return (None, reader.problems);
    }
    let resource = read_document(&mut reader, document.get_ref());
    (Some(resource), reader.problems)
}

fn read_document(reader: &mut Reader<'_>, document: &DeTable<'_>) -> FileResource {
    let top = Table {
        name: "the file",
        at: (0, 0),
        entries: document,
    };
    reader.unknown_keys(top, &TABLES);
    let mut resource = FileResource {
        file: Arc::clone(&reader.file),
        name: None,
        secret: None,
        settings: Settings::default(),
        handlers: Handlers::default(),
        written: Vec::new(),
        nodes: Vec::new(),
    };
    for section in Section::ALL {
        let name = format!("[{}]", section.name());
        let Some(value) = document.get_key_value(section.name()) else {
            continue;
        };
        let Some(table) = reader.table(&name, value) else {
            continue;
        };
        let more: &[&'static str] = if section == Section::Resource {
            &RESOURCE_KEYS
        } else {
            &[]
        };
        read_options(reader, table, section, more, &mut resource);
        if section == Section::Resource {
            if !table.entries.contains_key("name") {
                let help = "add for example: name = \"r0\"";
                reader.bad(table.at.0..table.at.1, "[resource] has no `name`", help);
            }
            resource.name = reader.parsed(table, "name", parse::name);
            resource.secret = read_secret(reader, table);
        }
    }
    if let Some(value) = document.get_key_value(handlers::SECTION)
        && let Some(table) = reader.table("[handlers]", value)
    {
        resource.handlers = Handlers::read(reader, table);
    }
    if let Some(value) = document.get_key_value("startup")
        && let Some(table) = reader.table("[startup]", value)
    {
        for key in table.entries.keys() {
            unknown_option(reader, table, "startup", key, &[]);
        }
    }
    if !document.contains_key("resource") {
        let help = "a file begins with:\n[resource]\nname = \"r0\"";
        reader
            .problems
            .push(Problem::with(&reader.file, "[resource] is missing").help(help));
    }
    if let Some(value) = document.get_key_value("node")
        && let Some(table) = reader.table("[node]", value)
    {
        for (key, value) in table.entries {
            resource.nodes.extend(read_node(reader, key, value));
        }
    }
    resource
}

/// Where a key was written.
pub(super) fn key_span(table: &DeTable<'_>, key: &str) -> std::ops::Range<usize> {
    table.get_key_value(key).map_or(0..0, |(key, _)| key.span())
}

/// Reads the options of a section; `more` are keys read elsewhere.
fn read_options(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    section: Section,
    more: &[&'static str],
    resource: &mut FileResource,
) {
    for (key, value) in table.entries {
        let name: &str = key.get_ref();
        if more.contains(&name) {
            continue;
        }
        let row = options::by_name(name).filter(|row| row.section == section);
        let Some(row) = row else {
            unknown_option(reader, table, section.name(), key, more);
            continue;
        };
        if row.alias == Some(name) && table.entries.contains_key(row.name) {
            let message = format!("`{name}` and `{}` are the same option", row.name);
            reader.bad(key.span(), message, "remove one of them");
        }
        match kinds::read(row, value.get_ref()) {
            Ok(read) => {
                resource.settings.set(row.key, read);
                resource.written.push((row.key, reader.spot(value.span())));
            }
            Err(wrong) => reader.bad(value.span(), wrong.message, wrong.help),
        }
    }
}

/// Notes a key that is no option of this section, in the most helpful words.
fn unknown_option(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    section: &str,
    key: &Spanned<toml::de::DeString<'_>>,
    more: &[&'static str],
) {
    let name: &str = key.get_ref();
    if let Some(row) = options::by_name(name) {
        let message = format!("`{name}` does not belong in {}", table.name);
        return reader.bad(
            key.span(),
            message,
            format!("move it to [{}]", row.section.name()),
        );
    }
    if let Some(note) = later::find(section, name) {
        let message = format!("`{name}` is not supported by this version");
        let help = if note.is_empty() {
            "remove the line"
        } else {
            note
        };
        return reader.bad(key.span(), message, help);
    }
    let here = options::OPTIONS
        .iter()
        .filter(|r| r.section.name() == section)
        .map(|r| r.name);
    let known: Vec<&str> = more.iter().copied().chain(here).collect();
    let like = known.iter().copied().chain(later::in_section(section));
    let help = match super::error::nearest(name, like) {
        Some(near) => format!("did you mean `{near}`?"),
        None => did_you_mean(name, &known),
    };
    reader.bad(
        key.span(),
        format!("unknown key `{name}` in {}", table.name),
        help,
    );
}

fn read_secret(reader: &mut Reader<'_>, table: Table<'_>) -> Option<At<SecretSource>> {
    let either = ["shared-secret", "shared-secret-file"];
    if !either.iter().any(|key| table.entries.contains_key(*key)) {
        let message = "the resource has no `shared-secret` or `shared-secret-file`";
        reader.bad(table.at.0..table.at.1, message, secret::help());
    }
    let both = table.entries.contains_key("shared-secret")
        && table.entries.contains_key("shared-secret-file");
    if both {
        let span = key_span(table.entries, "shared-secret-file");
        reader.bad(
            span,
            "both `shared-secret` and `shared-secret-file`",
            "remove one of them",
        );
    }
    if table.entries.contains_key("shared-secret-file") {
        let directory = reader.file.parent().unwrap_or(Path::new("/")).to_owned();
        let text = reader.string(table, "shared-secret-file")?;
        // A relative path is relative to the file that names it.
        let path = directory.join(&text.value);
        return Some(At {
            value: SecretSource::File(path),
            spot: text.spot,
        });
    }
    let text = reader.string(table, "shared-secret")?;
    Some(At {
        value: SecretSource::Text(text.value),
        spot: text.spot,
    })
}
