//! The search for doc comments that open with a headless clause.
//!
//! A doc comment opens with a noun phrase or a verb in the third person: "The limit of …", "Returns the …". A clause
//! such as "What is kept" or "When it ends" has no subject that a reader could look up.

use std::path::Path;

use anyhow::bail;

use super::SourceFile;

/// The words that open a headless clause.
const HEADLESS: &[&str] = &[
    "who",
    "whoever",
    "whom",
    "whose",
    "what",
    "whatever",
    "how",
    "however",
    "whether",
    "where",
    "wherever",
    "when",
    "whenever",
    "why",
    "which",
    "whichever",
    "that",
    "as",
    "if",
    "since",
    "while",
];

/// The number of headless openings that the workspace may have.
const CEILING: usize = 0;

/// The folders whose doc comments are held to the rule.
const FOLDERS: &[&str] = &["crates", "xtask", "bench"];

/// The number of words that a report shows of an opening.
const SHOWN_WORDS: usize = 10;

/// A doc comment that opens with a headless clause.
struct HeadlessComment {
    /// The line of the file, from 1, at which the comment begins.
    line: usize,
    /// The first words of the comment.
    words: String,
}

/// Checks that the workspace has at most [`CEILING`] headless openings.
///
/// # Errors
/// Names the count and the task that lists them.
pub(super) fn check(sources: &[SourceFile]) -> anyhow::Result<()> {
    let found = sources.iter().filter(|source| is_held(&source.name)).map(|source| openings(&source.text));
    let count = found.map(|openings| openings.len()).sum::<usize>();
    if count > CEILING {
        bail!(
            "{count} doc comments open with a headless clause, and {CEILING} are allowed\n\
             fix: open with a noun phrase or a verb; to list them: cargo xtask tidy --docs crates/<crate>"
        );
    }
    println!("{count} doc comments open with a headless clause (at most {CEILING})");
    Ok(())
}

/// Prints the headless openings of the files below `prefix`, and returns their number.
pub(super) fn list(sources: &[SourceFile], prefix: &Path) -> usize {
    let mut count = 0;
    for source in sources {
        let below =
            source.name.starts_with(prefix) || source.name.starts_with(Path::new("crates").join(prefix));
        if !below || !is_held(&source.name) {
            continue;
        }
        for opening in openings(&source.text) {
            println!("{}:{}: {}", source.name.display(), opening.line, opening.words);
            count += 1;
        }
    }
    count
}

fn is_held(name: &Path) -> bool {
    let rust = name.extension().is_some_and(|extension| extension == "rs");
    rust && FOLDERS.iter().any(|folder| name.starts_with(folder))
}

/// Returns the headless openings of a Rust file, in its order.
fn openings(text: &str) -> Vec<HeadlessComment> {
    let mut found = Vec::new();
    let mut previous = None;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let current = doc_line(line);
        let begins = current.is_some_and(|(marker, _)| previous != Some(marker));
        previous = current.map(|(marker, _)| marker);
        let Some((marker, content)) = current.filter(|_| begins) else { continue };
        if !is_headless(content) {
            continue;
        }
        let more = lines.peek().and_then(|(_, next)| doc_line(next)).filter(|(next, _)| *next == marker);
        let words =
            content.split_whitespace().chain(more.into_iter().flat_map(|(_, text)| text.split_whitespace()));
        let words = words.take(SHOWN_WORDS).collect::<Vec<_>>().join(" ");
        found.push(HeadlessComment { line: number + 1, words });
    }
    found
}

/// Returns the marker and the text of a line of a doc comment.
fn doc_line(line: &str) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    let outer = line.strip_prefix("///").filter(|rest| !rest.starts_with('/'));
    outer.map(|text| ("///", text)).or_else(|| line.strip_prefix("//!").map(|text| ("//!", text)))
}

fn is_headless(opening: &str) -> bool {
    let words = opening.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '`');
    let first = words.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    HEADLESS.contains(&first.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::openings;

    #[track_caller]
    fn check(text: &str, says: &[(usize, &str)]) {
        let found = openings(text);
        let found = found.iter().map(|opening| (opening.line, opening.words.as_str())).collect::<Vec<_>>();
        assert_eq!(found, says, "{text}");
    }

    #[test]
    fn a_clause_without_a_subject_is_found() {
        check("/// Who waits.\nstruct A;", &[(1, "Who waits.")]);
        check(
            "use b;\n\n    /// When it ends\n    /// by the clock.\n",
            &[(3, "When it ends by the clock.")],
        );
        check("//! Whether\n//! it works.", &[(1, "Whether it works.")]);
        check("/// **What** is kept.", &[(1, "**What** is kept.")]);
    }

    #[test]
    fn a_noun_or_a_verb_is_no_headless_clause() {
        check("/// The reader that waits.\n/// What it waits for is said elsewhere.\n", &[]);
        check("/// Returns the head.\n", &[]);
        check("/// Whole documents.\n", &[]);
        check("/// `What` is a type.\n", &[]);
    }

    #[test]
    fn other_comments_are_no_doc_comments() {
        check("// What comes next.\n//// Who knows.\n", &[]);
        check("let a = \"/// Who\";\n", &[]);
    }

    #[test]
    fn each_comment_has_its_own_opening() {
        check(
            "//! What it is.\n/// Who has it.\nstruct A;\n/// Where it is.\n",
            &[(1, "What it is."), (2, "Who has it."), (4, "Where it is.")],
        );
    }
}
