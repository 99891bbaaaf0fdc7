//! The check that the paths and symbols named in documents exist.
//!
//! A code span is a path when it ends in a known extension or in `/`, when it begins with a folder of the repository,
//! or when it names a crate. `crates/` may be left out. A short path such as `mailbox.rs` belongs to the last full path or
//! crate of its paragraph or table row. A symbol is named as `path:symbol`, or as a code span before `in` and the path.

use std::fs;
use std::path::{Path, PathBuf};

use super::SourceFile;

/// The documents whose paths are checked.
const DOCUMENTS: &[&str] = &["docs/architecture.md", "CONTRIBUTING.md"];

const EXTENSIONS: &[&str] =
    &["rs", "md", "toml", "mjs", "js", "json", "html", "css", "svg", "py", "sh", "yaml", "txt"];

/// The words that stand before the name of an item in its definition.
const DEFINING: &[&str] = &[
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "const",
    "static",
    "mut",
    "type",
    "mod",
    "macro_rules",
    "macro",
];

/// Returns a line for every path and symbol that does not exist.
pub(super) fn check(root: &Path, sources: &[SourceFile]) -> Vec<String> {
    let checked = sources.iter().filter(|source| DOCUMENTS.iter().any(|name| source.name == Path::new(name)));
    checked.flat_map(|source| check_document(root, source)).collect()
}

fn check_document(root: &Path, source: &SourceFile) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut in_code = false;
    let mut last_full = None;
    for (number, line) in source.text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        if fence || in_code {
            continue;
        }
        if line.is_empty() || line.starts_with(['|', '-', '#']) {
            last_full = None;
        }
        for mention in mentions(root, line) {
            let Some(found) = resolve(root, mention.path, last_full.as_deref()) else {
                wrong.push(format!(
                    "{}:{}: names `{}`, which does not exist",
                    source.name.display(),
                    number + 1,
                    mention.path
                ));
                continue;
            };
            if let Some(symbol) = mention.symbol
                && !fs::read_to_string(&found).is_ok_and(|text| defines(&text, symbol))
            {
                wrong.push(format!(
                    "{}:{}: names `{symbol}` in `{}`, which does not define it",
                    source.name.display(),
                    number + 1,
                    mention.path
                ));
            }
            if is_full(root, mention.path) {
                last_full = Some(found);
            }
        }
    }
    wrong
}

/// A path in a document, and the symbol that is said to be in it.
#[derive(Debug, PartialEq, Eq)]
struct Mention<'a> {
    path: &'a str,
    symbol: Option<&'a str>,
}

/// Returns the paths that the code spans of a line name.
fn mentions<'a>(root: &Path, line: &'a str) -> Vec<Mention<'a>> {
    let mut found = Vec::new();
    // Code spans are at the odd positions between backticks.
    let parts = line.split('`').collect::<Vec<_>>();
    for (index, span) in parts.iter().enumerate().skip(1).step_by(2) {
        if index + 1 == parts.len() {
            break;
        }
        let (path, own) = match span.split_once(':') {
            Some((path, symbol)) => (path, Some(symbol)),
            None => (*span, None),
        };
        if !is_path(root, path) {
            continue;
        }
        let before = (index >= 3 && parts[index - 1].trim() == "in").then(|| parts[index - 2]);
        found.push(Mention { path, symbol: own.or(before.filter(|symbol| is_symbol(symbol))) });
    }
    found
}

fn is_path(root: &Path, span: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    if span.is_empty() || span.starts_with('/') || !span.chars().all(plain) {
        return false;
    }
    let extension = Path::new(span).extension().and_then(|extension| extension.to_str());
    let known = extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
    let has_folder = span.contains('/') && is_full(root, span);
    known || has_folder || span.ends_with('/') || root.join("crates").join(span).exists()
}

/// Tells if a path begins with a folder or file of the repository's top folder or of `crates/`.
fn is_full(root: &Path, path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    root.join(first).exists() || root.join("crates").join(first).exists()
}

fn is_symbol(span: &str) -> bool {
    !span.is_empty() && span.split("::").all(|part| part.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// Returns the file or folder that a path names. A short path is looked up below `last_full`, in its `src`, and then in
/// the folders above it.
fn resolve(root: &Path, path: &str, last_full: Option<&Path>) -> Option<PathBuf> {
    let above = last_full.into_iter().flat_map(Path::ancestors).take_while(|folder| *folder != root);
    let above = above.flat_map(|folder| [folder.to_owned(), folder.join("src")]);
    let mut folders = [root.to_owned(), root.join("crates")].into_iter().chain(above);
    folders.find_map(|folder| Some(folder.join(path)).filter(|file| file.exists()))
}

/// Tells if a file defines a symbol. Of `Type::function` the function is defined in it, and the type is named in it.
fn defines(text: &str, symbol: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = code
        .flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>();
    let mut parts = symbol.split("::").collect::<Vec<_>>();
    let name = parts.pop().unwrap_or_default();
    let defined = words.windows(2).any(|pair| DEFINING.contains(&pair[0]) && pair[1] == name);
    defined && parts.iter().all(|part| words.contains(part))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use xtask::workspace;

    use super::{Mention, check_document, defines, mentions};
    use crate::tidy::SourceFile;

    #[track_caller]
    fn check(line: &str, paths: &[(&str, Option<&str>)]) {
        let expected = paths.iter().map(|&(path, symbol)| Mention { path, symbol }).collect::<Vec<_>>();
        assert_eq!(mentions(&workspace::root(), line), expected, "{line}");
    }

    #[test]
    fn code_spans_that_are_paths_are_found() {
        check(
            "`xtask/src/tidy.rs` and `tidy.rs:check`",
            &[("xtask/src/tidy.rs", None), ("tidy.rs", Some("check"))],
        );
        check("the fence (`Fence::check` in `lock.rs`)", &[("lock.rs", Some("Fence::check"))]);
        check("| codecs | `relay-ws/src/codec/` |", &[("relay-ws/src/codec/", None)]);
    }

    #[test]
    fn other_code_spans_are_no_paths() {
        check(
            "`user.joined`, `application/json`, `/socket/websocket`, `crates/*/tests`, `cargo xtask ci`",
            &[],
        );
    }

    #[test]
    fn definitions_are_found_in_code_alone() {
        let text = "// fn gone()\npub(crate) const fn open() {}\nimpl Fence {\n    fn check(&self) {}\n}\nstatic mut A: u8;";
        for symbol in ["open", "check", "Fence::check", "A"] {
            assert!(defines(text, symbol), "{symbol}");
        }
        for symbol in ["gone", "Fence", "Other::check"] {
            assert!(!defines(text, symbol), "{symbol}");
        }
    }

    #[test]
    fn missing_files_and_symbols_are_named_with_their_line() {
        let wrong = |text: &str| {
            let source = SourceFile { name: PathBuf::from("a.md"), text: text.to_owned() };
            check_document(&workspace::root(), &source)
        };
        assert_eq!(wrong("`xtask/src/tidy.rs:check`, `cli.rs`, `tidy/paths.rs`"), Vec::<String>::new());
        assert_eq!(
            wrong("the fields of an event (`relay-core`,\n`Event` in `event.rs`)"),
            Vec::<String>::new()
        );
        assert_eq!(
            wrong("\n`xtask/src/gone.rs`"),
            ["a.md:2: names `xtask/src/gone.rs`, which does not exist"]
        );
        // Short paths belong to a full path of the same paragraph.
        assert_eq!(
            wrong("`xtask/src/tidy.rs`\n\n`cli.rs`"),
            ["a.md:3: names `cli.rs`, which does not exist"]
        );
        let gone = wrong("`gone` in `xtask/src/tidy.rs`");
        assert_eq!(gone, ["a.md:1: names `gone` in `xtask/src/tidy.rs`, which does not define it"]);
    }
}
