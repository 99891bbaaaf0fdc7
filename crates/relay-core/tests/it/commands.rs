//! Commands by name: arguments come from any format, replies go to any format, and refusals say what was wrong.

use async_trait::async_trait;
use relay_core::{
    Caller, Command, CommandError, CommandHandler, Commands, ConnectionId, DuplicateCommand, ErrorCode,
    JsonText, Membership,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Add {
    a: u32,
    b: u32,
}

#[derive(Serialize)]
struct Sum {
    sum: u32,
}

impl Command for Add {
    const NAME: &'static str = "math:add";
    type Reply = Sum;
}

/// A command whose arguments are kept as the text that they came in.
#[derive(Deserialize)]
struct Echo(JsonText);

impl Command for Echo {
    const NAME: &'static str = "echo";
    type Reply = JsonText;
}

#[derive(Clone)]
struct Calculator;

#[async_trait]
impl CommandHandler<Add> for Calculator {
    async fn handle(&self, _from: &Caller, Add { a, b }: Add) -> Result<Sum, CommandError> {
        let sum = a.checked_add(b);
        sum.map(|sum| Sum { sum })
            .ok_or_else(|| CommandError::new(ErrorCode::TooLarge, "the sum is too large"))
    }
}

#[async_trait]
impl CommandHandler<Echo> for Calculator {
    async fn handle(&self, _from: &Caller, Echo(text): Echo) -> Result<JsonText, CommandError> {
        Ok(text)
    }
}

fn commands() -> Commands {
    let mut commands = Commands::default();
    commands.register::<Add>(Calculator).unwrap();
    commands.register::<Echo>(Calculator).unwrap();
    commands
}

fn ada() -> Caller {
    let (document, user) = ("notes".parse().unwrap(), "ada".parse().unwrap());
    Membership { document, user, connection: ConnectionId::new() }.into()
}

/// Runs a command as an edge does that speaks JSON.
async fn run(name: &str, arguments: &str) -> Option<Result<Value, CommandError>> {
    let commands = commands();
    let from = ada();
    let running = commands.run(name, &from, &mut serde_json::Deserializer::from_str(arguments))?;
    Some(running.await.map(|reply| serde_json::to_value(&reply).unwrap()))
}

#[tokio::test]
async fn a_command_is_found_by_its_name_and_answered_with_its_reply() {
    assert_eq!(run("math:add", r#"{"a": 1, "b": 2}"#).await.unwrap(), Ok(json!({"sum": 3})));
    assert_eq!(run("echo", r#"{"x": [1, null]}"#).await.unwrap(), Ok(json!({"x": [1, null]})));
    assert!(run("math:sub", "{}").await.is_none());
    // From a value rather than from text: the registry does not care.
    let commands = commands();
    let reply = commands.run("math:add", &ada(), json!({"a": 3, "b": 4})).unwrap().await.unwrap();
    assert_eq!(serde_json::to_string(&reply).unwrap(), r#"{"sum":7}"#);
}

#[tokio::test]
async fn arguments_that_do_not_fit_and_refusals_of_the_handler_keep_their_codes() {
    let wrong = run("math:add", r#"{"a": "one", "b": 2}"#).await.unwrap().unwrap_err();
    assert_eq!(wrong.code, ErrorCode::InvalidRequest);
    assert!(wrong.message.contains("invalid type: string"), "{wrong}");
    let refused = run("math:add", r#"{"a": 4294967295, "b": 1}"#).await.unwrap().unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::TooLarge, "the sum is too large"));
}

#[test]
fn two_commands_cannot_have_the_same_name() {
    let mut commands = commands();
    let refused = commands.register::<Add>(Calculator).unwrap_err();
    assert!(matches!(refused, DuplicateCommand { name: "math:add", .. }));
    assert!(commands.contains("math:add") && !commands.contains("math"));
}
