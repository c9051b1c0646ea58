//! `[handlers]`: which command is run when. No handler is there by default.

use super::diff::{Change, How};
use super::error::nearest;
use super::later;
use super::reader::{Reader, Table, did_you_mean};
use std::collections::BTreeMap;
use std::fmt::Write;
use twinblk_engine::handler::{HandlerKind, HandlerSet};

/// The section's name.
pub(super) const SECTION: &str = "handlers";

/// The handlers of a resource, each a command for `/bin/sh -c`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Handlers(BTreeMap<HandlerKind, String>);

impl Handlers {
    /// The command of a handler.
    pub(crate) fn command(&self, kind: HandlerKind) -> Option<&str> {
        self.0.get(&kind).map(String::as_str)
    }

    /// Which there are.
    pub(crate) fn set(&self) -> HandlerSet {
        let none = HandlerSet::default();
        self.0.keys().fold(none, |set, &kind| set.with(kind))
    }

    /// Reads the section.
    pub(super) fn read(reader: &mut Reader<'_>, table: Table<'_>) -> Self {
        let mut handlers = Self::default();
        for (key, value) in table.entries {
            let name: &str = key.get_ref();
            let is_later = later::in_section(SECTION).any(|later| later == name);
            let mut kinds = HandlerKind::ALL.into_iter().filter(|_| !is_later);
            let Some(kind) = kinds.find(|k| k.name() == name) else {
                let (message, help) = unknown(name);
                reader.bad(key.span(), message, help);
                continue;
            };
            let Some(command) = reader.as_string(name, value) else {
                continue;
            };
            if command.value.contains('\0') {
                let help = "write the command as you would in a shell";
                reader.bad(value.span(), format!("`{name}` has a zero byte"), help);
                continue;
            }
            handlers.0.insert(kind, command.value);
        }
        handlers
    }

    /// The section as `dump` prints it.
    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n[{SECTION}]")?;
        for (kind, command) in &self.0 {
            let quoted = toml::Value::String(command.clone());
            writeln!(out, "{} = {quoted}", kind.name())?;
        }
        Ok(())
    }

    /// What changed; all of it counts from the next run on.
    pub(super) fn diff(&self, new: &Self) -> impl Iterator<Item = Change> {
        let shown = |command: Option<&str>| match command {
            Some(command) => format!("\"{command}\""),
            None => "none".to_owned(),
        };
        HandlerKind::ALL.into_iter().filter_map(move |kind| {
            let (old, new) = (self.command(kind), new.command(kind));
            (old != new).then(|| Change {
                path: format!("{SECTION}.{}", kind.name()),
                old: shown(old),
                new: shown(new),
                how: How::Live,
            })
        })
    }
}

/// What is said of a key that is no handler.
fn unknown(name: &str) -> (String, String) {
    if later::in_section(SECTION).any(|later| later == name) {
        let message = format!("`{name}` is not supported by this version");
        return (message, "remove the line".to_owned());
    }
    let known = HandlerKind::ALL.map(HandlerKind::name);
    let like = known.into_iter().chain(later::in_section(SECTION));
    let help = match nearest(name, like) {
        Some(near) => format!("did you mean `{near}`?"),
        None => did_you_mean(name, &known),
    };
    (format!("unknown key `{name}` in [{SECTION}]"), help)
}
