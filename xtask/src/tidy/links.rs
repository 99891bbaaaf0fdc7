//! The check that every relative link of a Markdown file leads to a file of the repository.

use std::path::Path;

use super::SourceFile;

/// Returns a line for every link whose file is missing.
pub(super) fn check(root: &Path, sources: &[SourceFile]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.is("md")) {
        let folder = root.join(&source.name);
        for link in links(&source.text) {
            if !folder.parent().is_some_and(|folder| folder.join(link).exists()) {
                wrong.push(format!("{}: links to `{link}`, which does not exist", source.name.display()));
            }
        }
    }
    wrong
}

/// Returns the targets of a Markdown text's links into the repository, without anchors.
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
    use super::links;

    #[test]
    fn links_into_the_repository_are_found() {
        let text = "[a](docs/a.md#words) and [b](https://example.org) ![c](page.png)\n```\n[d](x.md)\n```\n[e](#here)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "page.png"]);
    }
}
