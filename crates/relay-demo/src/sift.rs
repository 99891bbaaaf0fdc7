//! SIFT: measures of a text's readability that do not depend on its spelling.
//!
//! | measure | from |
//! | --- | --- |
//! | reading ease, 0 (hard) to 100 (easy) | R. Flesch, A new readability yardstick, 1948; for English |
//! | grade of school | J. P. Kincaid et al., Derivation of new readability formulas, 1975; for English |
//! | LIX, 20 (easy) to 60 (hard) | C. H. Björnsson, Läsbarhet, 1968; for any language with spaces |
//! | lexical diversity | MTLD: P. McCarthy, S. Jarvis, MTLD, vocd-D, and HD-D, 2010 |

use std::collections::{HashMap, HashSet};

use relay_core::Event;
use serde::Serialize;
use serde_json::{Value, json};
use whatlang::Lang;

use super::documents::Fold;
use super::prose::{language, sentences, syllables, words};
use super::shared_text::SharedText;

/// The number of words above which a sentence is long.
const LONG_SENTENCE: usize = 30;
/// The number of letters above which a word is long (LIX).
const LONG_WORD: usize = 6;
/// The share of different words at which a factor of MTLD is complete.
const MTLD_FACTOR: f64 = 0.72;
/// The number of words below which a text has no MTLD.
const MTLD_WORDS: usize = 50;
/// The number of words of a phrase that counts as repeated when it comes again.
const PHRASE: usize = 4;
/// The most examples of a flag.
const EXAMPLES: usize = 3;
/// The longest example in characters.
const EXAMPLE_CHARS: usize = 80;

/// The quality of one document's text.
#[derive(Default)]
pub(crate) struct Quality(SharedText);

impl Fold for Quality {
    const PUBLISHES: &'static str = "x-quality";

    fn apply(&mut self, event: &Event) -> bool {
        self.0.apply(event)
    }

    fn result(&self) -> Box<dyn FnOnce() -> Value + Send> {
        let text = self.0.text();
        Box::new(move || text.map_or_else(|| json!({"too_long": true}), |text| json!(Measures::of(&text))))
    }
}

/// The measures of a text, rounded to a tenth.
#[derive(Debug, Serialize)]
struct Measures {
    words: usize,
    sentences: usize,
    /// Flesch's reading ease, for English alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    reading_ease: Option<f64>,
    /// Flesch and Kincaid's grade, for English alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lix: Option<f64>,
    /// The words of a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence_words: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lexical_diversity: Option<f64>,
    flags: Vec<Flag>,
}

#[derive(Debug, Serialize)]
struct Spread {
    mean: f64,
    median: usize,
    longest: usize,
    deviation: f64,
}

/// A passage that may need a second look.
#[derive(Debug, Serialize)]
struct Flag {
    name: &'static str,
    count: usize,
    examples: Vec<String>,
}

impl Measures {
    fn of(text: &str) -> Self {
        let sentences = sentences(text);
        let lengths: Vec<usize> = sentences.iter().map(|sentence| words(sentence).count()).collect();
        let all: Vec<String> = words(text).map(str::to_lowercase).collect();
        // A text in Latin letters that is too short to tell counts as English.
        let is_english = match language(text) {
            Some(language) => language == Lang::Eng,
            None => whatlang::detect_script(text) == Some(whatlang::Script::Latin),
        };
        let flesch = (is_english && !all.is_empty()).then(|| Flesch::of(&all, lengths.len()));
        Self {
            words: all.len(),
            sentences: sentences.len(),
            reading_ease: flesch.as_ref().map(|flesch| tenth(flesch.reading_ease)),
            grade: flesch.as_ref().map(|flesch| tenth(flesch.grade)),
            lix: lix(&all, lengths.len()).map(tenth),
            sentence_words: Spread::of(&lengths),
            lexical_diversity: lexical_diversity(&all).map(tenth),
            flags: flags(&sentences, is_english),
        }
    }
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

struct Flesch {
    reading_ease: f64,
    grade: f64,
}

impl Flesch {
    fn of(words: &[String], sentences: usize) -> Self {
        let per_sentence = ratio(words.len(), sentences.max(1));
        let per_word = ratio(words.iter().map(|word| syllables(word)).sum(), words.len());
        Self {
            reading_ease: 206.835 - 1.015 * per_sentence - 84.6 * per_word,
            grade: 0.39 * per_sentence + 11.8 * per_word - 15.59,
        }
    }
}

fn lix(words: &[String], sentences: usize) -> Option<f64> {
    let long = words.iter().filter(|word| word.chars().count() > LONG_WORD).count();
    (!words.is_empty()).then(|| ratio(words.len(), sentences.max(1)) + 100.0 * ratio(long, words.len()))
}

impl Spread {
    fn of(lengths: &[usize]) -> Option<Self> {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let (longest, median) = (*sorted.last()?, *sorted.get(sorted.len() / 2)?);
        let mean = ratio(sorted.iter().sum(), sorted.len());
        let variance =
            sorted.iter().map(|&length| (length as f64 - mean).powi(2)).sum::<f64>() / sorted.len() as f64;
        Some(Self { mean: tenth(mean), median, longest, deviation: tenth(variance.sqrt()) })
    }
}

/// Returns the MTLD: the mean length of stretches in which the share of different words stays above 0.72, forwards and
/// backwards.
fn lexical_diversity(words: &[String]) -> Option<f64> {
    (words.len() >= MTLD_WORDS)
        .then(|| f64::midpoint(mtld(words.iter(), words.len()), mtld(words.iter().rev(), words.len())))
}

fn mtld<'a>(words: impl Iterator<Item = &'a String>, count: usize) -> f64 {
    let mut factors = 0.0;
    let mut different = HashSet::new();
    let mut length = 0;
    for word in words {
        different.insert(word.as_str());
        length += 1;
        if ratio(different.len(), length) <= MTLD_FACTOR {
            factors += 1.0;
            different.clear();
            length = 0;
        }
    }
    if length > 0 {
        // An incomplete factor counts for its part.
        factors += (1.0 - ratio(different.len(), length)) / (1.0 - MTLD_FACTOR);
    }
    if factors > 0.0 { count as f64 / factors } else { count as f64 }
}

fn flags(sentences: &[&str], is_english: bool) -> Vec<Flag> {
    let long = sentences.iter().filter(|sentence| words(sentence).count() > LONG_SENTENCE);
    let passive = sentences.iter().filter(|sentence| is_english && is_passive(sentence));
    let found = [
        ("long_sentence", long.map(|sentence| excerpt(sentence)).collect()),
        ("passive", passive.map(|sentence| excerpt(sentence)).collect()),
        ("doubled_word", sentences.iter().flat_map(|sentence| doubled(sentence)).collect()),
        ("repeated_phrase", repeated(sentences)),
    ];
    let flag = |(name, mut examples): (_, Vec<String>)| {
        let count = examples.len();
        examples.truncate(EXAMPLES);
        (count > 0).then_some(Flag { name, count, examples })
    };
    found.into_iter().filter_map(flag).collect()
}

/// Returns the beginning of a text on one line.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(EXAMPLE_CHARS) {
        Some((end, _)) => format!("{}…", line[..end].trim_end()),
        None => line,
    }
}

/// Tells if a sentence has a form of "be" and then a participle, with at most one adverb in between.
fn is_passive(sentence: &str) -> bool {
    const BE: [&str; 8] = ["is", "are", "was", "were", "be", "been", "being", "am"];
    const IRREGULAR: [&str; 32] = [
        "made",
        "done",
        "given",
        "taken",
        "seen",
        "known",
        "found",
        "told",
        "held",
        "kept",
        "sent",
        "left",
        "lost",
        "shown",
        "written",
        "broken",
        "chosen",
        "driven",
        "eaten",
        "forgotten",
        "hidden",
        "built",
        "bought",
        "brought",
        "caught",
        "taught",
        "thought",
        "sold",
        "paid",
        "put",
        "set",
        "won",
    ];
    const NO_PARTICIPLE: [&str; 8] = ["need", "indeed", "red", "bed", "seed", "speed", "hundred", "sacred"];
    let words: Vec<String> = words(sentence).map(str::to_lowercase).collect();
    let is_participle = |word: &String| {
        (word.ends_with("ed") && word.len() > 3 && !NO_PARTICIPLE.contains(&word.as_str()))
            || IRREGULAR.contains(&word.as_str())
    };
    let is_adverb =
        |word: &String| word.ends_with("ly") || word == "not" || word == "never" || word == "also";
    (0..words.len()).filter(|&at| BE.contains(&words[at].as_str())).any(|at| match words.get(at + 1) {
        Some(next) if is_adverb(next) => words.get(at + 2).is_some_and(is_participle),
        Some(next) => is_participle(next),
        None => false,
    })
}

/// Returns the words that stand twice in a row, except "had had" and "that that", which may be right.
fn doubled(sentence: &str) -> Vec<String> {
    let words: Vec<String> = words(sentence).map(str::to_lowercase).collect();
    words
        .windows(2)
        .filter(|pair| pair[0] == pair[1] && !["had", "that"].contains(&pair[0].as_str()))
        .filter(|pair| pair[0].chars().all(char::is_alphabetic))
        .map(|pair| pair.join(" "))
        .collect()
}

/// Returns the phrases that come more than once, in the order of the text, without those that overlap an earlier one.
fn repeated(sentences: &[&str]) -> Vec<String> {
    let split: Vec<Vec<String>> =
        sentences.iter().map(|sentence| words(sentence).map(str::to_lowercase).collect()).collect();
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for phrase in split.iter().flat_map(|words| words.windows(PHRASE)) {
        *counts.entry(phrase).or_default() += 1;
    }
    let mut found = Vec::new();
    for words in &split {
        let mut at = 0;
        while let Some(phrase) = words.get(at..at + PHRASE) {
            if counts.get(phrase).is_some_and(|count| *count > 1) {
                found.push(phrase.join(" "));
                // Phrases that overlap it are not listed.
                for overlapping in words[at..].windows(PHRASE).take(PHRASE) {
                    counts.remove(overlapping);
                }
                at += PHRASE;
            } else {
                at += 1;
            }
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
mod tests {
    use super::*;

    /// Abraham Lincoln, 19 November 1863, the Bliss copy.
    const GETTYSBURG: &str = include_str!("texts/gettysburg.txt");
    /// Franz Kafka, Die Verwandlung, 1915, its beginning.
    const KAFKA: &str = include_str!("texts/verwandlung.txt");

    #[test]
    fn the_gettysburg_address_reads_as_it_is_known_to() {
        let measures = Measures::of(GETTYSBURG);
        // Counted by hand: 271 words (272 with "can not" as two, as some copies have it) in 10 sentences.
        assert!((268..=272).contains(&measures.words), "{measures:?}");
        assert_eq!(measures.sentences, 10);
        // Tools agree on 60 to 70 and on grade 10 to 12.
        assert!((58.0..72.0).contains(&measures.reading_ease.unwrap()), "{measures:?}");
        assert!((9.5..12.5).contains(&measures.grade.unwrap()), "{measures:?}");
        assert_eq!(measures.sentence_words.as_ref().unwrap().longest, 82);
        assert!(measures.flags.iter().any(|flag| flag.name == "long_sentence"));
    }

    #[test]
    fn a_simple_text_is_easier_than_a_hard_one() {
        let simple =
            Measures::of("The cat sat on the mat. It was warm. The dog came in and the cat ran off.");
        let hard = Measures::of(
            "Notwithstanding considerable epistemological reservations, contemporary methodologies \
             systematically necessitate interdisciplinary collaboration.",
        );
        assert!(simple.reading_ease.unwrap() > 100.0 && hard.reading_ease.unwrap() < 0.0);
        assert!(simple.lix.unwrap() < 20.0 && hard.lix.unwrap() > 60.0);
    }

    #[test]
    fn the_formulas_for_english_are_for_english() {
        let measures = Measures::of(KAFKA);
        assert_eq!((measures.reading_ease, measures.grade), (None, None));
        assert!((30.0..60.0).contains(&measures.lix.unwrap()), "{measures:?}");
        assert!(measures.flags.iter().all(|flag| flag.name != "passive"));
    }

    #[test]
    fn nothing_is_measured_of_nothing() {
        let measures = serde_json::to_value(Measures::of(" \n")).unwrap();
        assert_eq!(measures, json!({"words": 0, "sentences": 0, "flags": []}));
    }

    #[test]
    fn a_text_that_says_the_same_again_is_less_diverse() {
        let words = |text: &str| words(text).map(str::to_lowercase).collect::<Vec<_>>();
        let varied = lexical_diversity(&words(GETTYSBURG)).unwrap();
        let dull = lexical_diversity(&words(&"the cat saw the dog and ".repeat(20))).unwrap();
        assert!(varied > 40.0 && dull < 10.0, "{varied} {dull}");
        assert_eq!(lexical_diversity(&words("too short to tell")), None);
    }

    #[test]
    fn spelling_does_not_matter_to_sentences_and_their_lengths() {
        let (right, wrong) = (
            "She received their letter today. It was short.",
            "She recieved there leter today. It was shrot.",
        );
        let [right, wrong] = [right, wrong].map(Measures::of);
        assert_eq!((right.words, right.sentences, right.lix), (wrong.words, wrong.sentences, wrong.lix));
    }

    #[track_caller]
    fn flagged(text: &str, flag: &str, expected: &[&str]) {
        let measures = Measures::of(text);
        let found = measures.flags.iter().find(|found| found.name == flag);
        assert_eq!(found.map(|flag| flag.examples.clone()).unwrap_or_default(), expected, "{measures:?}");
    }

    #[test]
    fn passages_to_revise_are_named() {
        flagged("We went to the the sea.", "doubled_word", &["the the"]);
        flagged("All that he had had was gone.", "doubled_word", &[]);
        flagged(
            "The letter was quickly written. She wrote it.",
            "passive",
            &["The letter was quickly written."],
        );
        flagged("She is in need of help. It was red.", "passive", &[]);
        flagged(
            "At the end of the day we left. It rained at the end of the day.",
            "repeated_phrase",
            &["at the end of"],
        );
    }
}
