//! Suggestions for names that do not exist.

/// Returns the name that is most similar to `name`, if one is similar enough.
pub(super) fn closest_match<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Names are short. A long text is similar to none of them, and the comparison costs the product of the
    // lengths.
    let name = name.get(..name.len().min(64)).unwrap_or_default();
    let with_distance = names.map(|known| (strsim::damerau_levenshtein(name, known), known));
    with_distance.filter(|(distance, known)| *distance <= 1 + known.len() / 4).min().map(|(_, known)| known)
}
