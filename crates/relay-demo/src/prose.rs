//! The language, sentences, words and syllables of a text, by pure functions.

use unicode_segmentation::UnicodeSegmentation;
use whatlang::Lang;

/// Abbreviations whose full stop does not end a sentence.
const ABBREVIATIONS: [&str; 24] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "e.g", "i.e", "cf", "fig", "no", "vol",
    "p", "pp", "ca", "approx", "dept", "est", "inc", "ltd",
];
/// The number of words below which the language cannot be told.
const MIN_LANGUAGE_WORDS: usize = 4;

/// Returns the language of `text`, if the text is long enough to tell.
pub(crate) fn language(text: &str) -> Option<Lang> {
    words(text).nth(MIN_LANGUAGE_WORDS - 1)?;
    whatlang::detect(text).filter(whatlang::Info::is_reliable).map(|info| info.lang())
}

/// Returns the words of `text`. Numbers count as words, punctuation does not.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.unicode_words()
}

/// Returns the sentences of `text`. An empty line, the end of a heading and the end of a list item end a sentence.
pub(crate) fn sentences(text: &str) -> Vec<&str> {
    blocks(text).into_iter().flat_map(sentences_of_block).collect()
}

/// Splits a text into paragraphs, headings and list items.
fn blocks(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut block = 0..0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        let stands_alone = content.starts_with('#');
        let begins = stands_alone || ["- ", "* ", "+ ", "> "].iter().any(|mark| content.starts_with(mark));
        if content.is_empty() || begins {
            blocks.push(&text[block.clone()]);
            block = at..at;
        }
        block.end = at + line.len();
        at = block.end;
        if stands_alone {
            blocks.push(&text[block.clone()]);
            block = at..at;
        }
    }
    blocks.push(&text[block]);
    blocks.retain(|block| words(block).next().is_some());
    blocks
}

/// Splits a block at Unicode's sentence boundaries (UAX #29), except after an abbreviation or an initial.
fn sentences_of_block(block: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let (mut start, mut end) = (0, 0);
    for piece in block.split_sentence_bounds() {
        // Unicode puts a boundary at the end of a line; within a paragraph it is ignored.
        if end > start && !ends_open(&block[start..end]) && !goes_on(&block[start..end], piece) {
            sentences.push(&block[start..end]);
            start = end;
        }
        end += piece.len();
    }
    sentences.push(&block[start..end]);
    sentences.retain(|sentence| words(sentence).next().is_some());
    sentences
}

/// Tells if the sentence continues after `text`.
fn ends_open(text: &str) -> bool {
    let text = text.trim_end().trim_end_matches(['"', '\'', '”', '’', ')', ']', '*', '_']);
    let Some(before) = text.strip_suffix('.') else {
        return !text.ends_with(['!', '?', '…', '。', '！', '？']);
    };
    let last = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let is_initial = last.chars().count() == 1 && last.chars().all(char::is_uppercase) && last != "I";
    is_initial || ABBREVIATIONS.contains(&last.to_lowercase().as_str())
}

/// Tells if `next` continues a sentence that ends in a quotation so far, as in: "Who is it?" he asked.
fn goes_on(sentence: &str, next: &str) -> bool {
    sentence.trim_end().ends_with(['"', '”', '’', '«', '»'])
        && next.chars().next().is_some_and(char::is_lowercase)
}

/// Returns the number of syllables of an English word: its groups of vowels without silent endings. It is wrong for about
/// one word in ten, in both directions, which averages out over a text.
pub(crate) fn syllables(word: &str) -> usize {
    let word = word.to_lowercase();
    let word = word.trim_end_matches("'s").trim_end_matches("’s");
    let letters: Vec<char> = word.chars().filter(|letter| letter.is_alphabetic()).collect();
    let is_vowel = |at: usize| matches!(letters[at], 'a' | 'e' | 'i' | 'o' | 'u' | 'y');
    let mut count = (0..letters.len()).filter(|&at| is_vowel(at) && (at == 0 || !is_vowel(at - 1))).count();
    let ends = |ending: &str| word.ends_with(ending);
    let before = |back: usize| letters.len().checked_sub(back).map(|at| letters[at]);
    // "make", "asked", "makes"; but "table", "wanted", "boxes", "the".
    let silent = if ends("le") {
        before(3).is_some_and(|letter| "aeiouy".contains(letter))
    } else if ends("ed") {
        !before(3).is_some_and(|letter| "aeiouytd".contains(letter))
    } else if ends("es") {
        !before(3).is_some_and(|letter| "aeiouysxzcg".contains(letter)) && !ends("shes") && !ends("ches")
    } else {
        ends("e") && before(2).is_some_and(|letter| !"aeiouy".contains(letter))
    };
    if silent {
        count -= 1;
    }
    // "create", "science", "being", "radio": two vowels that are spoken one after the other; not those of "nation".
    let contains = |parts: &[&str]| parts.iter().any(|part| word.contains(part));
    let apart = contains(&["ia", "io", "iu", "ua", "eing", "creat", "ience"]);
    let together =
        contains(&["tion", "sion", "gion", "tial", "cial", "cian", "cious", "tious", "qua", "gua"]);
    if apart && !together {
        count += 1;
    }
    count.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_does_not_end_at_an_abbreviation_an_initial_or_a_line() {
        let text = "Mr. Darcy met J. R. Smith at 5.30\nin the hall. \"Who is it?\" he asked. Nobody knew!";
        let found: Vec<_> = sentences(text).into_iter().map(str::trim).collect();
        assert_eq!(
            found,
            ["Mr. Darcy met J. R. Smith at 5.30\nin the hall.", "\"Who is it?\" he asked.", "Nobody knew!"]
        );
    }

    #[test]
    fn headings_items_and_paragraphs_are_sentences_of_their_own() {
        let text = "# A heading\nA line\nthat goes on\n\nanother one\n- an item\n- and one more\n\n---\n";
        let found: Vec<_> = sentences(text).into_iter().map(str::trim).collect();
        assert_eq!(
            found,
            ["# A heading", "A line\nthat goes on", "another one", "- an item", "- and one more"]
        );
    }

    #[test]
    fn nothing_has_no_sentences() {
        assert!(sentences("").is_empty() && sentences(" \n\n … \n").is_empty());
    }

    #[test]
    fn syllables_of_words_that_everybody_can_count() {
        let expected = [
            (1, "the be make makes asked strength queue through boats"),
            (2, "table wanted boxes people reading being's water nation science"),
            (3, "syllable beautiful relation example radio"),
            (5, "communication university"),
        ];
        for (count, list) in expected {
            for word in list.split(' ') {
                assert_eq!(syllables(word), count, "{word}");
            }
        }
    }

    #[test]
    fn a_language_is_told_when_there_is_enough_of_it() {
        let english = "It is a truth universally acknowledged, that a single man must be in want of a wife.";
        let german =
            "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich verwandelt.";
        assert_eq!((language(english), language(german)), (Some(Lang::Eng), Some(Lang::Deu)));
        assert_eq!((language("Hi"), language("")), (None, None));
    }
}
