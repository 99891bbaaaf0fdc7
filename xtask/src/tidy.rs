//! What readers rely on: every module says what it is, and links between files of the repository lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::workspace;

/// Folders that hold nothing written by hand.
const SKIPPED: &[&str] = &["target", "node_modules", ".git", "corpus", "artifacts"];

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Checks the files of this workspace.
///
/// # Errors
/// Names every module without `//!` and every link to a file that is not there.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = workspace::root();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).display();
        let text = || fs::read_to_string(file).with_context(|| format!("{name} cannot be read"));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") if !opens_with_docs(&text()?) => {
                wrong.push(format!("{name}: does not open with `//!` saying what it is"));
            }
            Some("md") => {
                for link in links(&text()?) {
                    if !file.parent().is_some_and(|folder| folder.join(link).exists()) {
                        wrong.push(format!("{name}: links to `{link}`, which is not there"));
                    }
                }
            }
            _ => {}
        }
    }
    if !wrong.is_empty() {
        bail!("{}\nfix: write the module's first lines, or correct the link", wrong.join("\n"));
    }
    println!("{} files: modules are documented and links lead somewhere", files.len());
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&entry.file_name().to_string_lossy().as_ref()) {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Whether a Rust file says what it is; attributes may stand before it.
fn opens_with_docs(text: &str) -> bool {
    text.lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!["))
        .is_some_and(|line| line.starts_with("//!"))
}

/// The targets of a Markdown text's links into the repository, without anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines()
        .filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            !fence && !in_code
        })
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty() && !target.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::{links, opens_with_docs};

    #[test]
    fn a_module_opens_with_what_it_is() {
        assert!(opens_with_docs("//! The clock.\n\nuse std::time;\n"));
        assert!(opens_with_docs("#![no_main]\n//! Fuzzes the decoder.\n"));
        assert!(!opens_with_docs("use std::time;\n//! Too late.\n"));
        assert!(!opens_with_docs(""));
    }

    #[test]
    fn links_into_the_repository_are_found() {
        let text = "[a](docs/a.md#words) and [b](https://example.org) ![c](page.png)\n```\n[d](x.md)\n```\n[e](#here)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "page.png"]);
    }
}
