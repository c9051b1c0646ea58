//! `docs/refusals.md` lists every refusal the program can give: its text, its exit code, the way out.
//! This test reads the sources and keeps it complete. It finds a refusal where one is made: a
//! `Refusal { … }`, a call of `refuse(kind, reason, way out)`, of the daemon's `error(…)`, or of
//! `CliError::new(…)`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Expr, Lit, Stmt};

const BEGIN: &str = "<!-- refusals: begin, made from the sources -->\n";
const END: &str = "<!-- refusals: end -->";
/// What cannot be told from the source: a name, a number, words of somebody else.
const UNKNOWN: &str = "…";

/// A row: exit code, text, way out.
type Row = (u8, String, String);

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.starts_with("fake_")
        {
            found.push(path);
        }
    }
}

/// Texts an expression can have.
type Texts = Vec<String>;

#[derive(Default)]
struct Finder {
    /// Local names and what they can be, in the function that is read.
    names: HashMap<String, Texts>,
    rows: BTreeSet<Row>,
    /// Refusals without a way out, and the file they are made in.
    dead_ends: BTreeMap<String, String>,
    /// Refusals whose kind cannot be told from the source.
    no_code: BTreeMap<String, String>,
    file: String,
}

/// The literal of `format!`, with `…` where values are put in.
fn template(literal: &str) -> String {
    let mut out = String::new();
    let mut rest = literal.replace("{{", "\u{1}").replace("}}", "\u{2}");
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        out.push_str(UNKNOWN);
        let close = rest[open..].find('}').map_or(rest.len(), |c| open + c + 1);
        rest = rest[close..].to_owned();
    }
    out.push_str(&rest);
    out.replace('\u{1}', "{").replace('\u{2}', "}")
}

impl Finder {
    fn texts(&self, expr: &Expr) -> Texts {
        match expr {
            Expr::Lit(lit) => match &lit.lit {
                Lit::Str(text) => vec![text.value()],
                _ => vec![UNKNOWN.to_owned()],
            },
            Expr::Macro(call) if call.mac.path.is_ident("format") => {
                let tokens = call.mac.tokens.clone();
                let first = tokens.into_iter().next();
                let literal = first.and_then(|t| syn::parse2::<syn::LitStr>(t.into()).ok());
                vec![literal.map_or(UNKNOWN.to_owned(), |l| template(&l.value()))]
            }
            Expr::MethodCall(call) => {
                let passes = ["to_string", "to_owned", "into", "clone", "as_str"];
                if passes.iter().any(|m| call.method == m) {
                    self.texts(&call.receiver)
                } else {
                    vec![UNKNOWN.to_owned()]
                }
            }
            Expr::Call(call) => {
                let from = matches!(&*call.func, Expr::Path(p)
                    if p.path.segments.last().is_some_and(|s| s.ident == "from"));
                let new = matches!(&*call.func, Expr::Path(p)
                    if p.path.segments.last().is_some_and(|s| s.ident == "new"));
                match call.args.first() {
                    Some(arg) if from => self.texts(arg),
                    None if new => vec![String::new()],
                    _ => vec![UNKNOWN.to_owned()],
                }
            }
            Expr::Reference(inner) => self.texts(&inner.expr),
            Expr::Paren(inner) => self.texts(&inner.expr),
            Expr::Path(path) => {
                let name = path.path.get_ident().map(ToString::to_string);
                let known = name.and_then(|n| self.names.get(&n).cloned());
                known.unwrap_or_else(|| vec![UNKNOWN.to_owned()])
            }
            Expr::If(branch) => {
                let mut all = self.block_texts(&branch.then_branch);
                if let Some((_, other)) = &branch.else_branch {
                    all.extend(self.texts(other));
                }
                all
            }
            Expr::Block(block) => self.block_texts(&block.block),
            Expr::Match(cases) => cases
                .arms
                .iter()
                .flat_map(|a| self.texts(&a.body))
                .collect(),
            _ => vec![UNKNOWN.to_owned()],
        }
    }

    fn block_texts(&self, block: &syn::Block) -> Texts {
        match block.stmts.last() {
            Some(Stmt::Expr(expr, None)) => self.texts(expr),
            _ => Vec::new(),
        }
    }

    /// Exit codes by the name of the kind, of the engine's and of the command line's.
    fn codes(&self, expr: &Expr) -> Vec<u8> {
        let by_name = |name: &str| -> Option<u8> {
            Some(match name {
                "Usage" => 1,
                "Timeout" => 5,
                "Unknown" | "Other" => 10,
                "State" => 11,
                "InUse" => 12,
                "PeerRefused" => 13,
                "NoDisk" => 16,
                "NoUpToDateData" => 17,
                "NoDaemon" => 20,
                "Config" => 21,
                "Metadata" => 22,
                _ => return None,
            })
        };
        match expr {
            Expr::Path(path) => {
                let last = path.path.segments.last().map(|s| s.ident.to_string());
                last.and_then(|l| by_name(&l)).into_iter().collect()
            }
            Expr::If(branch) => {
                let last = |b: &syn::Block| match b.stmts.last() {
                    Some(Stmt::Expr(e, None)) => self.codes(e),
                    _ => Vec::new(),
                };
                let mut all = last(&branch.then_branch);
                if let Some((_, other)) = &branch.else_branch {
                    all.extend(self.codes(other));
                }
                all
            }
            Expr::Block(block) => match block.block.stmts.last() {
                Some(Stmt::Expr(e, None)) => self.codes(e),
                _ => Vec::new(),
            },
            Expr::Lit(lit) => match &lit.lit {
                Lit::Int(n) => n.base10_parse().into_iter().collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn refusal(&mut self, code: &Expr, reason: &Expr, way_out: &Expr) {
        let (reasons, ways) = (self.texts(reason), self.texts(way_out));
        let codes = self.codes(code);
        if codes.is_empty() {
            let known = reasons.iter().filter(|r| r.as_str() != UNKNOWN);
            let file = &self.file;
            self.no_code
                .extend(known.map(|r| (r.clone(), file.clone())));
        }
        for code in codes {
            for reason in &reasons {
                let words = reason.chars().filter(|c| c.is_alphabetic()).count();
                // Words of somebody else, passed on.
                if words < 2 {
                    continue;
                }
                for way in &ways {
                    if way.is_empty() {
                        self.dead_ends.insert(reason.clone(), self.file.clone());
                    }
                    self.rows.insert((code, reason.clone(), way.clone()));
                }
            }
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        let cfg = a.path().is_ident("cfg")
            && a.meta
                .require_list()
                .is_ok_and(|l| l.tokens.to_string().contains("test"));
        cfg || a.path().is_ident("test")
    })
}

impl<'a> Visit<'a> for Finder {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        if !is_test(&item.attrs) {
            self.names.clear();
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.names.clear();
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        visit::visit_local(self, local);
        let Some(init) = &local.init else { return };
        match &local.pat {
            syn::Pat::Ident(name) => {
                let texts = self.texts(&init.expr);
                self.names.insert(name.ident.to_string(), texts);
            }
            // let (reason, way_out) = (a, b), or a match that gives such pairs
            syn::Pat::Tuple(names) => {
                let pairs: Vec<&syn::ExprTuple> = match &*init.expr {
                    Expr::Tuple(t) => vec![t],
                    Expr::Match(m) => m
                        .arms
                        .iter()
                        .filter_map(|a| match &*a.body {
                            Expr::Tuple(t) => Some(t),
                            _ => None,
                        })
                        .collect(),
                    _ => Vec::new(),
                };
                for (i, name) in names.elems.iter().enumerate() {
                    if let syn::Pat::Ident(name) = name {
                        let texts = pairs
                            .iter()
                            .filter_map(|t| t.elems.get(i))
                            .flat_map(|e| self.texts(e))
                            .collect();
                        self.names.insert(name.ident.to_string(), texts);
                    }
                }
            }
            _ => {}
        }
    }

    fn visit_expr_struct(&mut self, expr: &'a syn::ExprStruct) {
        visit::visit_expr_struct(self, expr);
        if expr
            .path
            .segments
            .last()
            .is_none_or(|s| s.ident != "Refusal")
        {
            return;
        }
        let field = |name: &str| {
            let fits =
                |f: &&syn::FieldValue| matches!(&f.member, syn::Member::Named(n) if n == name);
            expr.fields.iter().find(fits).map(|f| &f.expr)
        };
        if let (Some(kind), Some(reason), Some(way_out)) =
            (field("kind"), field("reason"), field("way_out"))
        {
            self.refusal(kind, reason, way_out);
        }
    }

    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        visit::visit_expr_call(self, call);
        let Expr::Path(path) = &*call.func else {
            return;
        };
        let names: Vec<String> = path
            .path
            .segments
            .iter()
            .map(|s| s.ident.to_string())
            .collect();
        let args: Vec<&Expr> = call.args.iter().collect();
        let last = names.last().map_or("", String::as_str);
        let of = names.iter().rev().nth(1).map_or("", String::as_str);
        match (of, last, args.as_slice()) {
            (_, "refuse", [kind, reason, way_out])
            | ("CliError", "new", [kind, reason, way_out])
            | (_, "error", [_, kind, reason, way_out]) => self.refusal(kind, reason, way_out),
            _ => {}
        }
    }
}

fn find() -> Finder {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src/engine", "src/daemon", "src/cli"] {
        sources(&root.join(dir), &mut files);
    }
    files.sort();
    let mut finder = Finder::default();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("text");
        let file = syn::parse_file(&text).expect("Rust");
        finder.file = path
            .strip_prefix(root)
            .expect("inside")
            .display()
            .to_string();
        finder.visit_file(&file);
    }
    finder
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn table(rows: &BTreeSet<Row>) -> String {
    let mut out = String::from("\n| Exit code | Text | Way out |\n|---|---|---|\n");
    for (code, reason, way_out) in rows {
        let way_out = match way_out.is_empty() {
            true => "it is in the text",
            false => way_out,
        };
        out.push_str(&format!(
            "| {code} | {} | {} |\n",
            cell(reason),
            cell(way_out)
        ));
    }
    out.push('\n');
    out
}

/// To update the page: `TWINBLK_UPDATE_DOCS=1 cargo test --test refusals`.
#[test]
fn every_refusal_is_on_the_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/refusals.md");
    let page = std::fs::read_to_string(path).expect("docs/refusals.md");
    let (before, rest) = page.split_once(BEGIN).expect("the begin marker");
    let (written, after) = rest.split_once(END).expect("the end marker");
    let found = find();
    let table = table(&found.rows);
    if std::env::var_os("TWINBLK_UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).expect("write");
        return;
    }
    assert_eq!(
        written, table,
        "set TWINBLK_UPDATE_DOCS=1 and run this test to update the page"
    );
}

#[test]
fn every_refusal_has_a_code_and_a_way_out() {
    let found = find();
    assert!(found.no_code.is_empty(), "{:#?}", found.no_code);
    // What the system says at the end of a text must do where nothing better is known.
    let mut dead_ends = found.dead_ends;
    dead_ends.retain(|text, _| !text.ends_with(UNKNOWN));
    assert!(
        dead_ends.is_empty(),
        "nothing says what to do: {dead_ends:#?}"
    );
}

/// The finder itself: it sees what it is there to see.
#[test]
fn the_finder_reads_texts_however_they_are_put_together() {
    let source = r#"
        fn f(name: &str, lost: bool) {
            let text = format!("{name} holds {} of {{it}}", 3);
            let (reason, way) = match lost { true => ("it is lost for now", "find it"), false => ("it is here after all", "go on") };
            a(Refusal { kind: RefusalKind::InUse, reason: text, way_out: "end it".to_string() });
            refuse(RefusalKind::State, if lost { "the first of two" } else { "the second of two" }.to_string(), "");
            error("config", 21, String::from("the file is wrong"), &format!("mend {name}"));
            CliError::new(Code::Other, reason, way);
        }
        #[cfg(test)]
        mod tests { fn g() { refuse(RefusalKind::State, "not seen by anybody", ""); } }
    "#;
    let mut finder = Finder::default();
    finder.visit_file(&syn::parse_file(source).expect("Rust"));
    let rows: Vec<(u8, &str, &str)> = finder
        .rows
        .iter()
        .map(|(c, r, w)| (*c, r.as_str(), w.as_str()))
        .collect();
    for row in [
        (12, "… holds … of {it}", "end it"),
        (11, "the first of two", ""),
        (11, "the second of two", ""),
        (21, "the file is wrong", "mend …"),
        (10, "it is lost for now", "find it"),
    ] {
        assert!(rows.contains(&row), "{row:?} in {rows:?}");
    }
    assert!(!rows.iter().any(|r| r.1.contains("not seen")), "{rows:?}");
}
