//! A text that is edited by code-point positions.
//!
//! It is a gap buffer. Consecutive edits of a typed history lie close together, so an edit moves few characters, and
//! fifty followers of a long history remain cheap.

use anyhow::bail;

use super::trace::TracePatch;

/// The text of a follower.
#[derive(Debug, Default)]
pub(crate) struct GapText {
    before: Vec<char>,
    /// The characters after the gap, last one first.
    after: Vec<char>,
}

impl GapText {
    /// Replaces `patch.deleted` code points at `patch.position` by `patch.inserted`.
    ///
    /// # Errors
    /// When the patch reaches past the end of the text, which is then unchanged.
    pub(crate) fn apply(&mut self, patch: &TracePatch<'_>) -> anyhow::Result<()> {
        let TracePatch(position, deleted, inserted) = patch;
        let length = self.before.len() + self.after.len();
        if position.checked_add(*deleted).is_none_or(|end| end > length) {
            bail!("the patch deletes {deleted} characters at {position} of a text of {length}");
        }
        if *position < self.before.len() {
            self.after.extend(self.before.drain(position..).rev());
        } else {
            let moved = position - self.before.len();
            self.before.extend(self.after.drain(self.after.len() - moved..).rev());
        }
        self.after.truncate(self.after.len() - deleted);
        self.before.extend(inserted.chars());
        Ok(())
    }

    /// Tells if the text equals `text`.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.chars().eq(text.chars())
    }

    fn chars(&self) -> impl Iterator<Item = char> {
        self.before.iter().chain(self.after.iter().rev()).copied()
    }
}

impl From<&GapText> for String {
    fn from(text: &GapText) -> Self {
        text.chars().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{GapText, TracePatch};

    #[track_caller]
    fn check(patches: &[(usize, usize, &str)], expected: &str) {
        let mut text = GapText::default();
        for &(position, deleted, inserted) in patches {
            text.apply(&TracePatch(position, deleted, inserted.into())).unwrap();
        }
        assert!(text.is(expected), "{:?} is not {expected:?}", String::from(&text));
    }

    #[test]
    fn patches_insert_delete_and_replace() {
        check(&[(0, 0, "hello")], "hello");
        check(&[(0, 0, "hello"), (5, 0, " world"), (0, 1, "J")], "Jello world");
        check(&[(0, 0, "abc"), (1, 1, ""), (2, 0, "d"), (0, 3, "")], "");
    }

    #[test]
    fn positions_count_code_points() {
        check(&[(0, 0, "a👋ü"), (2, 0, "b"), (1, 1, "")], "abü");
    }

    #[test]
    fn a_patch_past_the_end_is_refused_and_changes_nothing() {
        let mut text = GapText::default();
        text.apply(&TracePatch(0, 0, "abc".into())).unwrap();
        assert!(text.apply(&TracePatch(4, 0, "x".into())).is_err());
        assert!(text.apply(&TracePatch(2, 2, "x".into())).is_err());
        assert!(text.apply(&TracePatch(usize::MAX, 1, "x".into())).is_err());
        assert!(text.is("abc"));
    }

    #[test]
    fn a_shorter_or_longer_text_differs() {
        let mut text = GapText::default();
        text.apply(&TracePatch(0, 0, "abc".into())).unwrap();
        assert!(!text.is("ab") && !text.is("abcd") && !text.is("abd"));
    }
}
