//! SPAWN: the title, language, length and links of a document.

use linkify::{LinkFinder, LinkKind};
use relay_core::Event;
use relay_events::{Body, DocumentSaved};
use serde::Serialize;
use serde_json::{Value, json};

use super::documents::Fold;
use super::prose::{language, words};
use super::shared_text::SharedText;

/// The silent reading speed in English: M. Brysbaert, How many words do we read per minute?, 2019.
const WORDS_PER_MINUTE: usize = 238;
/// The longest title.
const TITLE_CHARS: usize = 120;
/// The most links that are listed. All are counted.
const MOST_LINKS: usize = 20;
/// The longest link that is listed.
const LINK_BYTES: usize = 512;

/// The facts about one document.
#[derive(Default)]
pub(crate) struct Facts {
    text: SharedText,
    saved: Option<DocumentSaved>,
}

impl Fold for Facts {
    const PUBLISHES: &'static str = "x-metadata";

    fn apply(&mut self, event: &Event) -> bool {
        let is_edit = self.text.apply(event);
        if let Ok(Body::DocumentSaved(saved)) = Body::of(event) {
            self.saved = Some(saved);
            return true;
        }
        is_edit
    }

    fn result(&self) -> Box<dyn FnOnce() -> Value + Send> {
        let (text, saved) = (self.text.text(), self.saved.clone());
        Box::new(move || {
            let mut result =
                text.map_or_else(|| json!({"too_long": true}), |text| json!(TextMetadata::of(&text)));
            if let Some(saved) = saved {
                result["saved"] = json!(saved);
            }
            result
        })
    }
}

#[derive(Debug, Serialize)]
struct TextMetadata {
    /// The first heading, or else the first line with words.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// The ISO 639-3 code and English name, if the text is long enough to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<Language>,
    words: usize,
    /// Unicode code points.
    characters: usize,
    reading_seconds: usize,
    /// The number of links, repeated ones included.
    link_count: usize,
    /// The links without repetitions.
    links: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Language {
    code: &'static str,
    name: &'static str,
}

impl TextMetadata {
    fn of(text: &str) -> Self {
        let words = words(text).count();
        let (link_count, links) = links(text);
        Self {
            title: title(text),
            language: language(text).map(|found| Language { code: found.code(), name: found.eng_name() }),
            words,
            characters: text.chars().count(),
            reading_seconds: (words * 60).div_ceil(WORDS_PER_MINUTE),
            link_count,
            links,
        }
    }
}

fn title(text: &str) -> Option<String> {
    let has_words = |line: &&str| words(line).next().is_some();
    let heading = |line: &'_ str| {
        let rest = line.trim_start_matches('#');
        let level = line.len() - rest.len();
        ((1..=6).contains(&level) && rest.starts_with(' ')).then_some(level)
    };
    let mut in_code = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    });
    let lines: Vec<&str> = prose.map(str::trim).filter(has_words).collect();
    let line = lines.iter().find(|line| heading(line).is_some()).or(lines.first())?;
    let plain = match heading(line) {
        Some(level) => line[level..].trim().trim_end_matches('#').trim_end(),
        None => line,
    };
    Some(plain.chars().take(TITLE_CHARS).collect())
}

fn links(text: &str) -> (usize, Vec<String>) {
    let mut finder = LinkFinder::new();
    finder.kinds(&[LinkKind::Url]);
    let mut count = 0;
    let mut different: Vec<String> = Vec::new();
    for link in finder.links(text).map(|link| link.as_str()) {
        count += 1;
        let is_new = !different.iter().any(|known| known == link);
        if is_new && different.len() < MOST_LINKS && link.len() <= LINK_BYTES {
            different.push(link.to_owned());
        }
    }
    (count, different)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA: &str = include_str!("texts/verwandlung.txt");

    #[test]
    fn the_title_is_the_first_heading_or_else_the_first_line() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(title(text).as_deref(), expected, "{text:?}");
        check("Some words.\n\n## The plan ##\n# Later", Some("The plan"));
        check("\n---\n  Minutes of today\nAda was there.", Some("Minutes of today"));
        check("#no-heading\nbut words", Some("#no-heading"));
        check("```\n# a comment in code\n```\nText", Some("Text"));
        check("", None);
        check(&"long ".repeat(100), Some(&"long ".repeat(24)));
    }

    #[test]
    fn a_text_is_counted_and_its_language_told() {
        let metadata = TextMetadata::of(KAFKA);
        assert_eq!(metadata.language, Some(Language { code: "deu", name: "German" }));
        assert_eq!((metadata.words, metadata.characters), (102, 686));
        assert_eq!(metadata.reading_seconds, 26);
        let nothing = TextMetadata::of("");
        assert_eq!((nothing.words, nothing.reading_seconds, nothing.language), (0, 0, None));
    }

    #[test]
    fn links_are_counted_and_each_is_listed_once() {
        let text = "See https://example.org/a. Or [this](https://example.org/b(c)), again https://example.org/a; not \
                    example.org, not ada@example.org.";
        let expected = vec!["https://example.org/a".to_owned(), "https://example.org/b(c)".to_owned()];
        assert_eq!(links(text), (3, expected));
        let many = (0..100).map(|n| format!("https://example.org/{n}")).collect::<Vec<_>>().join(" ");
        let (count, listed) = links(&many);
        assert_eq!((count, listed.len()), (100, MOST_LINKS));
    }
}
