//! The house rules a program can check. CONTRIBUTING.md explains them.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under version control's usual suspects, without what is built.
fn files(ends: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, ends: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    walk(&path, ends, found);
                }
            } else if name.ends_with(ends) {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ends, &mut found);
    assert!(!found.is_empty());
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(root())
        .expect("inside")
        .display()
        .to_string()
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for (path, text) in files(".rs") {
        let lines = text.lines().count();
        assert!(
            lines <= 800,
            "{} has {lines} lines: one file, one concern",
            name(&path)
        );
        assert!(
            text.starts_with("//!"),
            "{} does not begin with what it is for",
            name(&path)
        );
    }
}

/// The engine reaches no clock, no file, no socket, no randomness of its own: it is `no_std`, and
/// nothing brings the standard library back in.
#[test]
fn the_engine_does_no_io() {
    let engine = root().join("src/engine");
    let lib = std::fs::read_to_string(engine.join("lib.rs")).expect("lib.rs");
    assert!(lib.contains("#![no_std]") || lib.contains("#![cfg_attr(not(test), no_std)]"));
    for (path, text) in files(".rs") {
        let tests = path.components().any(|c| c.as_os_str() == "tests")
            || name(&path).ends_with("tests.rs");
        if !path.starts_with(&engine) || tests {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().expect("something");
        for banned in ["std::", "extern crate std", "rustix", "libc::", "tokio"] {
            let found = code.lines().find(|line| {
                let line = line.trim_start();
                !line.starts_with("//") && line.contains(banned)
            });
            assert!(found.is_none(), "{}: {banned} in {found:?}", name(&path));
        }
    }
}

/// `unsafe` lives where the design puts it.
#[test]
fn unsafe_code_is_where_it_belongs() {
    const ALLOWED: [&str; 2] = ["src/driver/", "src/cli/demo_nodes.rs"];
    for (path, text) in files(".rs") {
        let name = name(&path);
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().expect("something");
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        let allowed = ALLOWED.iter().any(|a| name.starts_with(a)) || name == "tests/tidy.rs";
        assert!(!uses || allowed, "{name} has unsafe code");
    }
}

/// The dependency directions: the two protocol crates know nothing of twinblk's other parts.
#[test]
fn dependencies_point_one_way() {
    let manifest = |path: &str| std::fs::read_to_string(root().join(path)).expect("a manifest");
    let nbd = manifest("userspace-nbd/Cargo.toml");
    assert!(!nbd.contains("twinblk-"), "userspace-nbd stands alone");
    let protocol = manifest("protocol/Cargo.toml");
    assert!(!protocol.contains("twinblk-engine") && !protocol.contains("userspace-nbd"));
    let engine = manifest("src/engine/Cargo.toml");
    for io in ["tokio", "rustix", "libc", "io-uring", "userspace-nbd"] {
        assert!(!engine.contains(io), "the engine needs no {io}");
    }
}

/// Every direct dependency has its reason.
#[test]
fn every_dependency_has_a_reason() {
    let page = std::fs::read_to_string(root().join("docs/dependencies.md")).expect("the page");
    for (path, text) in files("Cargo.toml") {
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.ends_with("dependencies]") && line != "[workspace.dependencies]";
                continue;
            }
            let Some((key, _)) = line.split_once([' ', '.', '=']) else {
                continue;
            };
            if inside && !key.is_empty() && !key.starts_with('#') {
                let ours = key.starts_with("twinblk-") || key == "userspace-nbd";
                let known = page.contains(&format!("`{key}`"));
                assert!(
                    ours || known,
                    "{}: docs/dependencies.md lacks {key}",
                    name(&path)
                );
            }
        }
    }
}

/// Links between our own pages lead somewhere.
#[test]
fn links_in_the_documentation_lead_somewhere() {
    for (path, text) in files(".md") {
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().expect("something");
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let file = path.parent().expect("a directory").join(target);
            assert!(file.exists(), "{}: {target} is not there", name(&path));
        }
    }
}

/// No change log without the present, no list of decisions that forgets one.
#[test]
fn decisions_are_listed() {
    let index = std::fs::read_to_string(root().join("docs/decisions/README.md")).expect("index");
    for entry in std::fs::read_dir(root().join("docs/decisions")).expect("a directory") {
        let file = entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned();
        assert!(
            file == "README.md" || index.contains(&file),
            "{file} is not in the list"
        );
    }
}

/// A part of `deny.toml` between brackets.
fn listed(text: &str, key: &str) -> Vec<String> {
    let list = text.split_once(&format!("{key} = [")).expect("the list").1;
    let list = list.split("\n]").next().expect("its end");
    list.lines()
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// What `cargo deny check licenses bans` checks, also where that program is not installed.
#[test]
fn licences_are_allowed_and_dead_ends_are_not_there() {
    let rules = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let (allowed, banned) = (listed(&rules, "allow"), listed(&rules, "deny"));
    assert!(allowed.len() > 3 && banned.len() > 2);
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "Cargo.lock is up to date");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        assert!(!banned.iter().any(|b| b == name), "{name} is banned");
        let licence = package["license"].as_str().unwrap_or("none");
        let good = licence.replace('/', " OR ").split(" OR ").any(|choice| {
            let choice = choice.trim().trim_matches(['(', ')']);
            choice.split(" AND ").all(|part| {
                allowed
                    .iter()
                    .any(|a| a == part.trim().trim_matches(['(', ')']))
            })
        });
        // Alternatives for other systems than ours do not count; everything else must be allowed.
        let foreign = name.starts_with("windows") || name.starts_with("wasi") || name == "r-efi";
        assert!(good || foreign, "{name}: {licence}");
        let ours = package["source"].is_null();
        let registry = package["source"]
            .as_str()
            .unwrap_or("")
            .starts_with("registry+");
        assert!(ours || registry, "{name} comes from {}", package["source"]);
    }
}

/// The deliberate mistakes of the simulation are in no program that is shipped.
#[test]
fn the_program_has_no_deliberate_mistakes() {
    let source = std::fs::read_to_string(root().join("src/engine/sabotage.rs")).expect("it");
    let mark = source
        .split_once("pub const MARK: &str = \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .expect("the mark")
        .0;
    assert!(mark.len() > 20);
    let program = std::fs::read(env!("CARGO_BIN_EXE_twinblk")).expect("the program");
    let found = program.windows(mark.len()).any(|w| w == mark.as_bytes());
    assert!(!found, "it was built with --cfg sabotage");
    for name in ["Cargo.toml", "src/engine/Cargo.toml", ".cargo/config.toml"] {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_default();
        let features = text.contains("sabotage = [") || text.contains("--cfg");
        assert!(!features, "{name} must not make it possible by accident");
    }
}
