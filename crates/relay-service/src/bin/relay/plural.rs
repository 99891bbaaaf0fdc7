//! Numbers with their nouns, in the output of commands.

use std::fmt::Display;

/// Returns `number` and `noun`, with an s at its end unless the number is 1.
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let ending = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_in_the_singular() {
        assert_eq!([0_u64, 1, 2].map(|n| counted(n, "rule")), ["0 rules", "1 rule", "2 rules"]);
    }
}
