//! What the documents tell people to write into their files, so that the stories run the same and not
//! something like it.

use std::path::Path;

/// The one block of code in docs/PAGE that has these words in it.
pub(crate) fn block(page: &str, words: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // Every second part lies between two fences; its first line is the language.
    let blocks = text.split("\n```").skip(1).step_by(2);
    let mut found = blocks
        .filter_map(|block| block.split_once('\n'))
        .map(|(_, code)| format!("{code}\n"))
        .filter(|code| code.contains(words));
    let code = found
        .next()
        .unwrap_or_else(|| panic!("docs/{page} has no block with {words:?}"));
    assert!(
        found.next().is_none(),
        "docs/{page} has more than one block with {words:?}"
    );
    code
}

/// The same with every `from` in place of which a test needs a `to`; each must be there.
pub(crate) fn adapted(page: &str, words: &str, changes: &[(&str, &str)]) -> String {
    let mut code = block(page, words);
    for (from, to) in changes {
        assert!(
            code.contains(from),
            "docs/{page}: {from:?} is not in {code}"
        );
        code = code.replace(from, to);
    }
    code
}
