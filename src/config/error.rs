//! What is wrong with a configuration, with the place, the line and the way out.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in a file: enough to show the line with a caret below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// The file.
    pub(crate) file: Arc<PathBuf>,
    /// Line, from 1.
    pub(crate) line: usize,
    /// Column in characters, from 1.
    pub(crate) column: usize,
    /// Characters to underline, at least 1.
    width: usize,
    /// The line's text.
    text: String,
}

impl Spot {
    /// The place of the byte range `span` of `text`, which is the content of `file`.
    pub(crate) fn new(file: &Arc<PathBuf>, text: &str, span: Range<usize>) -> Self {
        let start = floor_char(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let end = floor_char(text, span.end).clamp(start, line_end);
        Self {
            file: Arc::clone(file),
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            text: text[line_start..line_end].trim_end().to_owned(),
        }
    }

    /// `file:line:column`.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// The last character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where; `None` when no line of a file is to blame.
    pub(crate) spot: Option<Box<Spot>>,
    /// The file or directory, when there is no line.
    pub(crate) path: Option<PathBuf>,
    /// What is wrong and why.
    pub(crate) message: String,
    /// What to do; may be empty.
    pub(crate) help: String,
}

impl Problem {
    /// A problem at a place in a file.
    pub(crate) fn at(spot: &Spot, message: impl Into<String>) -> Self {
        Self {
            spot: Some(Box::new(spot.clone())),
            path: None,
            message: message.into(),
            help: String::new(),
        }
    }

    /// A problem with a file or directory as a whole.
    pub(crate) fn with(path: &Path, message: impl Into<String>) -> Self {
        Self {
            spot: None,
            path: Some(path.to_owned()),
            message: message.into(),
            help: String::new(),
        }
    }

    /// A problem of the call, not of a file.
    pub(crate) fn general(message: impl Into<String>) -> Self {
        Self {
            spot: None,
            path: None,
            message: message.into(),
            help: String::new(),
        }
    }

    /// Adds the way out.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.spot, &self.path) {
            (Some(spot), _) => {
                writeln!(f, "{}: {}", spot.place(), self.message)?;
                let number = spot.line.to_string();
                let blank = " ".repeat(number.len());
                writeln!(f, "  {number} | {}", spot.text)?;
                write!(f, "  {blank} | {}{}", indent(spot), "^".repeat(spot.width))?;
            }
            (None, Some(path)) => write!(f, "{}: {}", path.display(), self.message)?,
            (None, None) => write!(f, "{}", self.message)?,
        }
        for line in self.help.lines() {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// White space up to the spot's column; tabs stay tabs so that the caret stands below its word.
fn indent(spot: &Spot) -> String {
    spot.text
        .chars()
        .take(spot.column - 1)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect()
}

/// Everything that is wrong, in the order of files and lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigErrors(pub(crate) Vec<Problem>);

impl ConfigErrors {
    /// `Err` with all of them sorted, or `Ok` when there is none.
    pub(super) fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| a.spot.cmp(&b.spot));
        problems.dedup();
        Err(Self(problems))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => Ok(()),
            n => write!(f, "\n{n} errors in the configuration"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// The candidate most like `word`, if any is like it at all.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Edit distance: insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(text: &str, span: Range<usize>) -> Spot {
        Spot::new(&Arc::new(PathBuf::from("/etc/r0.toml")), text, span)
    }

    #[test]
    fn caret_stands_below_the_word() {
        let text = "[net]\n\tpingint = 10\n";
        let problem = Problem::at(&spot(text, 7..14), "unknown key").help("did you mean this?");
        let expected = "/etc/r0.toml:2:2: unknown key\n  2 | \tpingint = 10\n    | \t^^^^^^^\n    \
                        did you mean this?";
        assert_eq!(problem.to_string(), expected);
    }

    #[test]
    fn columns_count_characters_and_spans_stay_in_their_line() {
        let text = "name = \"ö\" x\nnext";
        let s = spot(text, 12..17);
        assert_eq!((s.line, s.column, s.width), (1, 12, 1));
        // Beyond the end, and inside a character: no panic.
        assert_eq!(spot(text, 900..901).line, 2);
        assert_eq!(spot(text, 9..10).column, 9);
    }

    #[test]
    fn nearest_finds_slips_and_not_strangers() {
        let keys = ["ping-int", "ping-timeout", "timeout", "connect-int"];
        assert_eq!(nearest("pingint", keys), Some("ping-int"));
        assert_eq!(nearest("ping_timeout", keys), Some("ping-timeout"));
        assert_eq!(nearest("tiemout", keys), Some("timeout"));
        assert_eq!(nearest("Ping-Int", keys), Some("ping-int"));
        assert_eq!(nearest("colour", keys), None);
    }

    #[test]
    fn a_swap_costs_one() {
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn errors_are_sorted_and_counted() {
        let text = "a\nb\n";
        let problems = vec![
            Problem::at(&spot(text, 2..3), "second"),
            Problem::at(&spot(text, 0..1), "first"),
            Problem::at(&spot(text, 0..1), "first"),
        ];
        let text = ConfigErrors::check(problems).unwrap_err().to_string();
        assert!(text.find("first") < text.find("second"), "{text}");
        assert!(text.ends_with("2 errors in the configuration"), "{text}");
        assert!(ConfigErrors::check(Vec::new()).is_ok());
    }
}
