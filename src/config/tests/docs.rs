//! `docs/configuration.md` says what the table says.

use crate::config::diff::How;
use crate::config::kinds::accepts;
use crate::config::options::{Section, in_section};
use std::fmt::Write;

const BEGIN: &str = "<!-- options: begin, made from src/config/options.rs -->\n";
const END: &str = "<!-- options: end -->";

fn tables() -> String {
    let mut out = String::new();
    for section in Section::ALL {
        let name = section.name();
        writeln!(out, "\n### [{name}]\n\n| Option | Accepts | Default | Change takes effect | Meaning |\n|---|---|---|---|---|").unwrap();
        for row in in_section(section) {
            let change = match row.change {
                How::Live => "at once",
                How::NeedsReconnect => "next connection",
                How::NeedsDownUp => "next start",
            };
            let (accepts, help) = (accepts(row), row.help);
            writeln!(
                out,
                "| `{}` | {accepts} | `{}` | {change} | {help} |",
                row.name, row.default
            )
            .unwrap();
        }
    }
    out.push('\n');
    out
}

/// To update the page: `TWINBLK_UPDATE_DOCS=1 cargo test config::tests::docs`.
#[test]
fn the_page_has_the_table_of_options() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).expect("docs/configuration.md");
    let (before, rest) = page.split_once(BEGIN).expect("the begin marker");
    let (written, after) = rest.split_once(END).expect("the end marker");
    let tables = tables();
    if std::env::var_os("TWINBLK_UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{tables}{END}{after}")).expect("write");
        return;
    }
    assert_eq!(
        written, tables,
        "set TWINBLK_UPDATE_DOCS=1 and run this test to update the page"
    );
}
