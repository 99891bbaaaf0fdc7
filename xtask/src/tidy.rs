//! The checks of the repository's text: module documentation, doc comments, links and paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use xtask::workspace;

use crate::cli::TidyOptions;

mod headless;
mod links;
mod paths;

/// Folders that hold nothing written by hand.
const SKIPPED: &[&str] = &["target", "node_modules", ".git", "corpus", "artifacts"];

/// A file of the repository with its text.
struct SourceFile {
    /// The path from the repository's top folder.
    name: PathBuf,
    text: String,
}

impl SourceFile {
    fn is(&self, extension: &str) -> bool {
        self.name.extension().is_some_and(|own| own == extension)
    }
}

pub(crate) fn run(options: &TidyOptions) -> anyhow::Result<ExitCode> {
    let Some(prefix) = &options.docs else {
        check()?;
        return Ok(ExitCode::SUCCESS);
    };
    let prefix = prefix.as_deref().unwrap_or(Path::new(""));
    let prefix = prefix.strip_prefix(".").unwrap_or(prefix);
    let count = headless::list(&sources(&workspace::root())?, prefix);
    println!("{count} doc comments open with a headless clause");
    Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the files of this workspace.
///
/// # Errors
/// Names every module without `//!`, every link, path and symbol that leads nowhere, and too many headless doc comments.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = workspace::root();
    let sources = sources(&root)?;
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.is("rs") && !opens_with_docs(&source.text)) {
        wrong.push(format!("{}: does not open with a `//!` comment", source.name.display()));
    }
    wrong.extend(links::check(&root, &sources));
    wrong.extend(paths::check(&root, &sources));
    if !wrong.is_empty() {
        bail!("{}\nfix: write the module's first lines, or correct the link or path", wrong.join("\n"));
    }
    println!("{} files: modules are documented and links lead to files", sources.len());
    headless::check(&sources)
}

/// Reads the Rust and Markdown files of the repository, sorted by path.
fn sources(root: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs" || extension == "md"))
        .map(|file| {
            let name = file.strip_prefix(root).unwrap_or(&file).to_owned();
            let text =
                fs::read_to_string(&file).with_context(|| format!("{} cannot be read", name.display()))?;
            Ok(SourceFile { name, text })
        })
        .collect()
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

/// Tells if a Rust file opens with a `//!` comment; attributes may stand before it.
fn opens_with_docs(text: &str) -> bool {
    text.lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!["))
        .is_some_and(|line| line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::opens_with_docs;

    #[test]
    fn a_module_opens_with_what_it_is() {
        assert!(opens_with_docs("//! The clock.\n\nuse std::time;\n"));
        assert!(opens_with_docs("#![no_main]\n//! Fuzzes the decoder.\n"));
        assert!(!opens_with_docs("use std::time;\n//! Too late.\n"));
        assert!(!opens_with_docs(""));
    }
}
