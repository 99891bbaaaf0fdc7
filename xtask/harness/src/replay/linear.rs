//! The conversion of a concurrent history into one order.
//!
//! Every inserted character is kept, with the transaction that inserted it and those that deleted it. A transaction's
//! positions are found among the characters that its author saw, and rewritten to count the characters of the text at
//! its turn. The recorded histories have no two concurrent inserts at the same position, so any position between the same
//! two visible characters is right.

use anyhow::{Context, bail};

use super::trace::{Edit, TracePatch};

/// One transaction as recorded: its patches apply to the merge of its parents.
pub(crate) struct Transaction {
    pub(crate) parents: Vec<usize>,
    pub(crate) agent: usize,
    pub(crate) patches: Vec<TracePatch<'static>>,
}

/// The number of seen transactions of each agent. An agent's transactions are in order, so the count identifies them.
type SeenCounts = Vec<usize>;

/// A transaction's identity: the agent, and the index among the agent's transactions.
#[derive(Clone, Copy)]
struct Dot {
    agent: usize,
    index: usize,
}

struct Character {
    inserted: Dot,
    deleted: Vec<Dot>,
}

/// Rewrites transactions, in the order in which they stand, so that each applies to the result of those before it.
///
/// # Errors
/// When a parent stands after its child, or a patch reaches past the end of what its author saw.
pub(crate) fn linearise(
    transactions: impl IntoIterator<Item = Transaction>,
) -> anyhow::Result<Vec<Edit<'static>>> {
    let mut characters: Vec<Character> = Vec::new();
    let mut versions: Vec<SeenCounts> = Vec::new();
    let mut counts: SeenCounts = Vec::new();
    let mut edits = Vec::new();
    for (number, transaction) in transactions.into_iter().enumerate() {
        let Transaction { parents, agent, patches } = transaction;
        let mut seen = SeenCounts::new();
        for parent in parents {
            let Some(version) = versions.get(parent) else {
                bail!("transaction {number} stands before its parent {parent}");
            };
            merge(&mut seen, version);
        }
        reserve(&mut counts, agent);
        let dot = Dot { agent, index: counts[agent] };
        counts[agent] += 1;
        // Later patches of a transaction see its earlier ones.
        reserve(&mut seen, agent);
        seen[agent] = dot.index + 1;
        let mut rewritten = Vec::with_capacity(patches.len());
        for patch in patches {
            apply(&mut characters, &seen, dot, patch, &mut rewritten)
                .with_context(|| format!("transaction {number}"))?;
        }
        edits.push(Edit { patches: rewritten });
        versions.push(seen);
    }
    Ok(edits)
}

/// Applies a patch whose positions count the characters in `seen`, and adds its rewritten form to `rewritten`.
fn apply(
    characters: &mut Vec<Character>,
    seen: &SeenCounts,
    dot: Dot,
    patch: TracePatch<'static>,
    rewritten: &mut Vec<TracePatch<'static>>,
) -> anyhow::Result<()> {
    let TracePatch(position, deleted, inserted) = patch;
    // The index of `position` among all characters, and its position in the text at this turn.
    let (mut at, mut seen_before, mut now_before) = (0, 0, 0);
    while seen_before < position {
        let Some(character) = characters.get(at) else {
            bail!("position {position} is past the end of the text of {seen_before}");
        };
        seen_before += usize::from(character.is_in(seen));
        now_before += usize::from(character.is_there());
        at += 1;
    }
    let (mut next, mut left, mut now) = (at, deleted, now_before);
    while left > 0 {
        let Some(character) = characters.get_mut(next) else {
            bail!("{deleted} characters are deleted at {position}, {left} more than there are");
        };
        next += 1;
        let was_there = character.is_there();
        if character.is_in(seen) {
            left -= 1;
            character.deleted.push(dot);
            // A concurrent transaction may have deleted it already.
            if was_there {
                match rewritten.last_mut() {
                    Some(TracePatch(at, count, text)) if *at == now && text.is_empty() => *count += 1,
                    _ => rewritten.push(TracePatch(now, 1, "".into())),
                }
            }
        } else {
            now += usize::from(was_there);
        }
    }
    if !inserted.is_empty() {
        let new = inserted.chars().map(|_| Character { inserted: dot, deleted: Vec::new() });
        characters.splice(at..at, new);
        rewritten.push(TracePatch(now_before, 0, inserted));
    }
    Ok(())
}

impl Character {
    fn is_in(&self, version: &SeenCounts) -> bool {
        contains(version, self.inserted) && !self.deleted.iter().any(|dot| contains(version, *dot))
    }

    fn is_there(&self) -> bool {
        self.deleted.is_empty()
    }
}

fn contains(version: &SeenCounts, dot: Dot) -> bool {
    version.get(dot.agent).is_some_and(|count| dot.index < *count)
}

fn merge(version: &mut SeenCounts, other: &SeenCounts) {
    if version.len() < other.len() {
        version.resize(other.len(), 0);
    }
    for (count, other) in version.iter_mut().zip(other) {
        *count = (*count).max(*other);
    }
}

fn reserve(version: &mut SeenCounts, agent: usize) {
    if version.len() <= agent {
        version.resize(agent + 1, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{TracePatch, Transaction, linearise};

    fn transaction(parents: &[usize], agent: usize, patches: &[(usize, usize, &'static str)]) -> Transaction {
        let patches = patches.iter().map(|&(at, gone, new)| TracePatch(at, gone, new.into())).collect();
        Transaction { parents: parents.to_vec(), agent, patches }
    }

    #[track_caller]
    fn check(history: Vec<Transaction>, last: &[(usize, usize, &'static str)]) {
        let edits = linearise(history).unwrap();
        let last = last.iter().map(|&(at, gone, new)| TracePatch(at, gone, new.into())).collect::<Vec<_>>();
        assert_eq!(edits.last().unwrap().patches, last);
    }

    #[test]
    fn a_deletion_steps_over_what_others_inserted() {
        let history = vec![
            transaction(&[], 0, &[(0, 0, "abcd")]),
            transaction(&[0], 0, &[(2, 0, "XY")]),
            transaction(&[0], 1, &[(1, 2, "")]),
        ];
        check(history, &[(1, 1, ""), (3, 1, "")]);
    }

    #[test]
    fn text_that_two_agents_delete_is_deleted_once() {
        let history = vec![
            transaction(&[], 0, &[(0, 0, "abc")]),
            transaction(&[0], 0, &[(1, 1, "")]),
            transaction(&[0], 1, &[(0, 2, "")]),
        ];
        check(history, &[(0, 1, "")]);
    }

    #[test]
    fn a_later_patch_sees_the_earlier_one_of_its_transaction() {
        let history = vec![transaction(&[], 0, &[(0, 0, "ab"), (1, 1, "c"), (2, 0, "d")])];
        check(history, &[(0, 0, "ab"), (1, 1, ""), (1, 0, "c"), (2, 0, "d")]);
    }

    #[test]
    fn an_impossible_history_is_refused() {
        assert!(linearise([transaction(&[3], 0, &[])]).is_err());
        assert!(linearise([transaction(&[], 0, &[(1, 0, "a")])]).is_err());
        assert!(linearise([transaction(&[], 0, &[(0, 1, "")])]).is_err());
    }
}
