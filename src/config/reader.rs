//! Reads keys of a parsed TOML table and notes what is wrong with its place, never stopping at the
//! first problem.

use super::error::{At, Problem, Spot, nearest};
use super::kinds::article;
use super::secret;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A table of the file with its name for messages ("[node.alpha]").
#[derive(Clone, Copy)]
pub(super) struct Table<'t> {
    pub(super) name: &'t str,
    /// Where its name was written.
    pub(super) at: (usize, usize),
    pub(super) entries: &'t DeTable<'t>,
}

/// One file being read.
pub(super) struct Reader<'f> {
    pub(super) file: Arc<PathBuf>,
    pub(super) text: &'f str,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    /// The place of a byte range.
    pub(super) fn spot(&self, span: Range<usize>) -> Spot {
        Spot::new(&self.file, self.text, span)
    }

    /// Notes a problem.
    pub(super) fn bad(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.problems
            .push(Problem::at(&self.spot(span), message).help(help));
    }

    /// `value` with the place it was written.
    pub(super) fn at<T>(&self, value: T, span: Range<usize>) -> At<T> {
        At {
            value,
            spot: self.spot(span),
        }
    }

    /// Notes every key of `table` that is not one of `known`.
    pub(super) fn unknown_keys(&mut self, table: Table<'_>, known: &[&str]) {
        for (key, value) in table.entries {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let mut help = did_you_mean(name, known);
            if value.get_ref().is_table() && table.name.starts_with("[node.") {
                help =
                    "a name with a dot in it must be quoted: [node.\"alpha.example\"]".to_owned();
            }
            self.bad(
                key.span(),
                format!("unknown key `{name}` in {}", table.name),
                help,
            );
        }
    }

    /// The string at `key`, if it is there and a string.
    pub(super) fn string(&mut self, table: Table<'_>, key: &str) -> Option<At<String>> {
        let value = table.entries.get(key)?;
        self.as_string(key, value)
    }

    /// `value` as a string that is not empty.
    pub(super) fn as_string(
        &mut self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<At<String>> {
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                let help = if key == "shared-secret" {
                    secret::help()
                } else {
                    String::new()
                };
                self.bad(value.span(), format!("`{key}` is empty"), help);
                None
            }
            DeValue::String(text) => Some(self.at(text.clone().into_owned(), value.span())),
            other => {
                let kind = article(other.type_str());
                self.bad(
                    value.span(),
                    format!("`{key}` must be a string, not {kind}"),
                    "",
                );
                None
            }
        }
    }

    /// The string at `key`, turned into something by `parse`, which says what is wrong and the
    /// way out.
    pub(super) fn parsed<T>(
        &mut self,
        table: Table<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, (String, String)>,
    ) -> Option<At<T>> {
        let text = self.string(table, key)?;
        match parse(&text.value) {
            Ok(value) => Some(At {
                value,
                spot: text.spot,
            }),
            Err((message, help)) => {
                self.problems
                    .push(Problem::at(&text.spot, message).help(help));
                None
            }
        }
    }

    /// The table `value` under `key`, called `name` in messages.
    pub(super) fn table<'t>(
        &mut self,
        name: &'t str,
        (key, value): (&Spanned<DeString<'_>>, &'t Spanned<DeValue<'t>>),
    ) -> Option<Table<'t>> {
        let at = (key.span().start, key.span().end);
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table { name, at, entries }),
            other => {
                let kind = article(other.type_str());
                self.bad(
                    value.span(),
                    format!("{name} must be a table, not {kind}"),
                    "",
                );
                None
            }
        }
    }
}

/// "did you mean …?", or what there is.
pub(super) fn did_you_mean(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "no key is known here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}
