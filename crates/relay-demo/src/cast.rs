//! CAST: the key phrases of an annotation.
//!
//! The algorithm is RAKE (S. Rose, D. Engel, N. Cramer, W. Cowley, Automatic keyword extraction from individual documents,
//! in: Text Mining, 2010). Phrases are the runs of words between stop words and punctuation. A word's score is its degree
//! (the words in all phrases that contain it) divided by its frequency. A phrase's score is the sum of its words' scores.

use std::collections::HashMap;

use async_trait::async_trait;
use relay_core::Event;
use relay_events::{AnnotationAdded, Body};
use serde::{Deserialize, Serialize};
use serde_json::json;
use unicode_segmentation::UnicodeSegmentation;

use super::client::RelayClient;
use super::prose::language;
use super::{HandleError, Service};

/// The kind of the published events.
const PUBLISHES: &str = "x-tags";
/// The most tags of an annotation.
const MOST_TAGS: usize = 8;
/// The longest tag in words. Longer phrases come from languages whose stop words are unknown.
const MOST_WORDS: usize = 4;
/// The part of an annotation that is read.
const MOST_CHARS: usize = 20_000;

/// The service CAST.
pub(crate) struct Cast {
    relay: RelayClient,
}

impl Cast {
    pub(crate) fn new(relay: RelayClient) -> Self {
        Self { relay }
    }
}

#[async_trait]
impl Service for Cast {
    async fn handle(&self, event: Event) -> Result<(), HandleError> {
        let Ok(Body::AnnotationAdded(AnnotationAdded { annotation, text, .. })) = Body::of(&event) else {
            return Ok(());
        };
        let text: String = text.chars().take(MOST_CHARS).collect();
        let tags = tokio::task::spawn_blocking(move || tags(&text)).await?;
        let payload = json!({"annotation": annotation, "tags": tags});
        Ok(self.relay.publish(PUBLISHES, &payload, &event, event.id).await?)
    }
}

/// A key phrase and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) tag: String,
    pub(crate) score: f64,
}

/// Returns the key phrases of `text`, the best first. Their number is a third of the content words, as in RAKE, and at
/// least three.
fn tags(text: &str) -> Vec<Tag> {
    let stop_words = stop_words(text);
    let phrases = phrases(text, stop_words);
    let mut frequency: HashMap<&str, usize> = HashMap::new();
    let mut degree: HashMap<&str, usize> = HashMap::new();
    for phrase in &phrases {
        for word in phrase {
            *frequency.entry(word).or_default() += 1;
            *degree.entry(word).or_default() += phrase.len();
        }
    }
    let score = |word: &String| degree[word.as_str()] as f64 / frequency[word.as_str()] as f64;
    let mut found: Vec<Tag> = Vec::new();
    for phrase in phrases.iter().filter(|phrase| phrase.len() <= MOST_WORDS) {
        let tag = phrase.join(" ");
        if !found.iter().any(|known| known.tag == tag) {
            found.push(Tag { tag, score: (phrase.iter().map(score).sum::<f64>() * 10.0).round() / 10.0 });
        }
    }
    // Equal ones stay in the order of the text.
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(frequency.len().div_ceil(3).clamp(3, MOST_TAGS));
    found
}

/// Returns the stop words of the text's language, or of English.
fn stop_words(text: &str) -> &'static [&'static str] {
    let code = language(text).map_or("eng", |language| language.code());
    let known = match code {
        "deu" => "de",
        "fra" => "fr",
        "spa" => "es",
        "ita" => "it",
        "por" => "pt",
        "nld" => "nl",
        "swe" => "sv",
        "dan" => "da",
        "rus" => "ru",
        _ => "en",
    };
    stop_words::lookup(known).unwrap_or_default()
}

/// Returns the runs of content words in lower case, in the order of the text.
fn phrases(text: &str, stop_words: &[&str]) -> Vec<Vec<String>> {
    let mut phrases = vec![Vec::new()];
    for piece in text.split_word_bounds() {
        let word = piece.to_lowercase().replace('’', "'");
        let is_word = word.chars().any(char::is_alphanumeric);
        let is_number = word.chars().all(|c| c.is_numeric() || c == '.' || c == ',');
        if is_word && !is_number && !stop_words.contains(&word.as_str()) && word.chars().count() > 1 {
            if let Some(phrase) = phrases.last_mut() {
                phrase.push(word);
            }
        } else if !(piece == " " || piece == "-" || piece == "\n") {
            phrases.push(Vec::new());
        }
    }
    phrases.retain(|phrase| !phrase.is_empty());
    phrases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the paper in which RAKE was published.
    const ABSTRACT: &str = "Compatibility of systems of linear constraints over the set of natural numbers. Criteria of \
        compatibility of a system of linear Diophantine equations, strict inequations, and nonstrict inequations are \
        considered. Upper bounds for components of a minimal set of solutions and algorithms of construction of minimal \
        generating sets of solutions for all types of systems are given. These criteria and the corresponding algorithms \
        for constructing a minimal supporting set of solutions can be used in solving all the considered types of systems \
        and systems of mixed types.";

    #[test]
    fn the_paper_s_example_gives_the_paper_s_key_phrases() {
        let found = tags(ABSTRACT);
        let found: Vec<_> = found.iter().map(|tag| (tag.tag.as_str(), tag.score)).collect();
        // The paper's scores, except where its list of stop words has one more ("corresponding", "used").
        for expected in [
            ("minimal generating sets", 8.7),
            ("linear diophantine equations", 8.5),
            ("minimal supporting set", 7.7),
        ] {
            assert!(found.contains(&expected), "{expected:?} in {found:?}");
        }
    }

    #[test]
    fn tags_of_a_remark() {
        let found = tags(
            "The error handling here is too optimistic: a lost connection needs a retry budget, not endless retries.",
        );
        let names: Vec<_> = found.iter().map(|tag| tag.tag.as_str()).collect();
        for expected in ["error handling", "retry budget"] {
            assert!(names.contains(&expected), "{names:?}");
        }
        assert!(names.len() <= MOST_TAGS);
    }

    #[test]
    fn stop_words_are_those_of_the_text_s_language() {
        let german = "Die automatische Fehlerbehandlung ist hier noch nicht vollständig, weil die Verbindung verloren geht.";
        let names: Vec<_> = tags(german).into_iter().map(|tag| tag.tag).collect();
        assert!(names.contains(&"automatische fehlerbehandlung".to_owned()), "{names:?}");
        assert!(
            names.iter().all(|name| !name.split(' ').any(|word| ["die", "ist", "nicht"].contains(&word))),
            "{names:?}"
        );
    }

    #[test]
    fn text_without_content_words_has_no_tags() {
        for text in ["", "it is what it is", "42 — 3,5!"] {
            assert_eq!(tags(text), [], "{text}");
        }
    }
}
