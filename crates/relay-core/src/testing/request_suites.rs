//! The suites for what reads requests from outside: [`CommandHandler`](crate::CommandHandler)s, by way of [`Commands`], and
//! [`Vocabulary`].

use std::fmt;
use std::pin::pin;
use std::task::{Context, Waker};

use serde_json::Value;

use crate::checked::{CheckedDraft, Vocabulary};
use crate::command::{Commands, RunningCommand};
use crate::error::{CommandError, ErrorCode};
use crate::event::Draft;
use crate::presence::Membership;

/// A command for [`command_suite`].
#[derive(Debug, Clone, Copy)]
pub struct CommandCase {
    /// The command's name.
    pub name: &'static str,
    /// Makes arguments with which the command succeeds, from the reply to the case before.
    pub arguments: fn(&Value) -> Value,
    /// Arguments that do not fit the command, if any do not.
    pub malformed: Option<&'static str>,
    /// True when only participants may give the command.
    pub members_only: bool,
}

/// Checks that each command succeeds for `member`, one case after the other, though each was dropped at work before. Also
/// checks that malformed arguments are refused with a message, and that a command of participants is refused for `stranger`,
/// who is none.
///
/// # Panics
/// When a handler breaks its contract.
pub async fn command_suite(
    commands: &Commands,
    member: &Membership,
    stranger: &Membership,
    cases: &[CommandCase],
) {
    let start = |name: &str, from: &Membership, arguments: &str| -> RunningCommand<'_> {
        let running =
            commands.run(name, &from.clone().into(), &mut serde_json::Deserializer::from_str(arguments));
        running.unwrap_or_else(|| panic!("there is no command `{name}`"))
    };
    assert!(
        commands
            .run("suite:unknown", &member.clone().into(), &mut serde_json::Deserializer::from_str("{}"))
            .is_none()
    );
    let refusal = async |name: &str, from: &Membership, arguments: &str| -> CommandError {
        match start(name, from, arguments).await {
            Err(error) => error,
            Ok(_) => panic!("`{name}` of {from:?} passes with {arguments}"),
        }
    };
    for case in cases {
        if let Some(malformed) = case.malformed {
            for from in [member, stranger] {
                let error = refusal(case.name, from, malformed).await;
                assert_eq!(
                    error.code,
                    ErrorCode::InvalidRequest,
                    "`{}` with {malformed}: {error:?}",
                    case.name
                );
                assert!(!error.message.is_empty(), "`{}` is refused without a message", case.name);
            }
        }
        let arguments = (case.arguments)(&Value::Null).to_string();
        let dropped = pin!(start(case.name, member, &arguments));
        // Whatever the first poll gives, the rest is dropped.
        let _ = dropped.poll(&mut Context::from_waker(Waker::noop()));
    }
    let mut last_reply = Value::Null;
    for case in cases {
        let arguments = (case.arguments)(&last_reply).to_string();
        if case.members_only {
            let error = refusal(case.name, stranger, &arguments).await;
            assert_eq!(error.code, ErrorCode::NotJoined, "`{}` of a stranger: {error:?}", case.name);
        }
        let reply = start(case.name, member, &arguments).await;
        let reply = reply.unwrap_or_else(|error| panic!("`{}` fails with {arguments}: {error:?}", case.name));
        last_reply = serde_json::to_value(&reply).unwrap_or_else(|error| panic!("`{}`: {error}", case.name));
    }
}

/// Checks that a vocabulary decides the same each time, and that a draft that passed stays as it was when it is rewritten
/// into one that is refused.
///
/// # Panics
/// When the vocabulary does not let an `admitted` draft pass, lets a `refused` one pass, or breaks its contract.
pub fn vocabulary_suite<V: Vocabulary>(vocabulary: &V, admitted: &[Draft], refused: &[Draft])
where
    V::Error: fmt::Debug,
{
    let check = |draft: &Draft| CheckedDraft::new(draft.clone(), vocabulary);
    let admit =
        |draft: &Draft| check(draft).unwrap_or_else(|error| panic!("{draft:?} is refused: {error:?}"));
    for draft in refused {
        assert!(check(draft).is_err() && check(draft).is_err(), "{draft:?} passes");
    }
    for draft in admitted {
        let before = admit(draft);
        assert_eq!(before.claim(), admit(draft).claim(), "{draft:?} is checked again");
        for other in admitted.iter().chain(refused).filter(|other| other.kind == draft.kind) {
            let mut rewritten = before.clone();
            let outcome = rewritten.rewrite(other.payload.clone(), vocabulary);
            let mut wanted = draft.clone();
            wanted.payload = other.payload.clone();
            match (outcome, check(&wanted)) {
                (Ok(()), Ok(wanted)) => {
                    assert_eq!((&rewritten.payload, rewritten.claim()), (&wanted.payload, wanted.claim()));
                    assert_eq!(rewritten.original_payload(), Some(&draft.payload));
                }
                (Err(_), Err(_)) => assert_eq!(format!("{rewritten:?}"), format!("{before:?}")),
                (outcome, wanted) => panic!("{draft:?} becomes {wanted:?} and not {outcome:?}"),
            }
        }
    }
}
