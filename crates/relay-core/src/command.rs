//! Commands of participants besides publishing: each is a type with a name and a type of reply, and a [`CommandHandler`]
//! that carries it out. [`Commands`] is the list of all that a server knows, by name.
//!
//! An edge reads a command's name from its own protocol, and lends [`Commands::run`] a deserialiser of the arguments; the
//! reply comes back as a value that the edge serialises. So a crate adds commands without any edge knowing them, and no
//! edge and no crate reads the format of another. Code in the same process calls a handler with the typed command.
//!
//! ```
//! use async_trait::async_trait;
//! use relay_core::{
//!     Caller, Command, CommandError, CommandHandler, Commands, ConnectionId, DocumentId, Membership, UserId,
//! };
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Roll { sides: u32 }
//!
//! #[derive(Serialize)]
//! struct Rolled { value: u32 }
//!
//! impl Command for Roll {
//!     const NAME: &'static str = "dice:roll";
//!     type Reply = Rolled;
//! }
//!
//! struct Loaded;
//!
//! #[async_trait]
//! impl CommandHandler<Roll> for Loaded {
//!     async fn handle(&self, _from: &Caller, roll: Roll) -> Result<Rolled, CommandError> {
//!         Ok(Rolled { value: roll.sides })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut commands = Commands::default();
//! commands.register::<Roll>(Loaded)?;
//!
//! let from = Caller::from(Membership {
//!     document: DocumentId::new("notes")?,
//!     user: UserId::new("ada")?,
//!     connection: ConnectionId::new(),
//! });
//! let mut arguments = serde_json::Deserializer::from_str(r#"{"sides": 6}"#);
//! let reply = commands.run("dice:roll", &from, &mut arguments).ok_or("no such command")?.await?;
//! assert_eq!(serde_json::to_string(&reply)?, r#"{"value":6}"#);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserializer, Serialize, Serializer};

use crate::error::{CommandError, ErrorCode};
use crate::memory::MemoryShare;
use crate::presence::Membership;

/// A command of a participant, with its arguments.
pub trait Command: DeserializeOwned + Send + 'static {
    /// The command's name in every protocol, for instance `lock:acquire`. No event kind has a colon in its name.
    const NAME: &'static str;

    /// The reply to a command that succeeds.
    type Reply: Serialize + Send + 'static;
}

/// The participant that gives a command.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Caller {
    /// The participant.
    pub membership: Membership,
    /// The share of memory of the client, to which what the command leaves behind counts; `None` where it counts to no client.
    pub memory: Option<MemoryShare>,
}

impl Caller {
    /// A participant whose client has the share `memory`.
    pub const fn new(membership: Membership, memory: Option<MemoryShare>) -> Self {
        Self { membership, memory }
    }
}

impl From<Membership> for Caller {
    /// A participant within this process.
    fn from(membership: Membership) -> Self {
        Self::new(membership, None)
    }
}

/// Carries out one type of command.
///
/// # Contract
/// - The edge names the caller truthfully; the handler checks that the participant may do what it asks.
/// - `handle` may wait for long. It is cancel-safe: dropped, what waits is withdrawn.
#[async_trait]
pub trait CommandHandler<C: Command>: Send + Sync + 'static {
    /// Carries out `command` for the participant `from`.
    ///
    /// # Errors
    /// [`CommandError`], whose code says how to go on.
    async fn handle(&self, from: &Caller, command: C) -> Result<C::Reply, CommandError>;
}

/// All commands that a server knows, by their names. Made once, when the server is put together.
#[derive(Default)]
pub struct Commands {
    by_name: BTreeMap<&'static str, Box<dyn ErasedHandler>>,
}

impl Commands {
    /// Adds the command `C`, which `handler` carries out.
    ///
    /// # Errors
    /// [`DuplicateCommand`] when there is a command of that name; it stays.
    pub fn register<C: Command>(&mut self, handler: impl CommandHandler<C>) -> Result<(), DuplicateCommand> {
        if self.contains(C::NAME) {
            return Err(DuplicateCommand { name: C::NAME });
        }
        self.by_name
            .insert(C::NAME, Box::new(TypedHandler::<C, _> { handler, command: std::marker::PhantomData }));
        Ok(())
    }

    /// True when there is a command of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Reads the arguments of the command `name` and begins to carry it out for the participant `from`. Returns `None`
    /// when there is no such command.
    ///
    /// The arguments are read before this returns. The future is cancel-safe as [`CommandHandler::handle`] is. It fails with
    /// [`ErrorCode::InvalidRequest`] when the arguments do not fit the command, and else as the handler does.
    pub fn run<'de>(
        &self,
        name: &str,
        from: &Caller,
        arguments: impl Deserializer<'de>,
    ) -> Option<RunningCommand<'_>> {
        let handler = self.by_name.get(name)?;
        let mut arguments = <dyn erased_serde::Deserializer<'_>>::erase(arguments);
        Some(handler.run(from.clone(), &mut arguments))
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

/// A command that is being carried out.
pub type RunningCommand<'a> = Pin<Box<dyn Future<Output = Result<Reply, CommandError>> + Send + 'a>>;

/// The reply to a command whose type the caller does not know: a value that serialises.
pub struct Reply(Box<dyn erased_serde::Serialize + Send>);

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        erased_serde::serialize(&*self.0, serializer)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Two commands have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are two commands named `{name}`; register each once")]
#[non_exhaustive]
pub struct DuplicateCommand {
    /// The name.
    pub name: &'static str,
}

/// A handler without the type of its command.
trait ErasedHandler: Send + Sync {
    fn run(&self, from: Caller, arguments: &mut dyn erased_serde::Deserializer<'_>) -> RunningCommand<'_>;
}

struct TypedHandler<C, H> {
    handler: H,
    command: std::marker::PhantomData<fn(C)>,
}

impl<C: Command, H: CommandHandler<C>> ErasedHandler for TypedHandler<C, H> {
    fn run(&self, from: Caller, arguments: &mut dyn erased_serde::Deserializer<'_>) -> RunningCommand<'_> {
        let command = erased_serde::deserialize::<C>(arguments);
        Box::pin(async move {
            let command = command.map_err(|error| {
                let message = format!("the payload is not what this request takes: {error}");
                CommandError::new(ErrorCode::InvalidRequest, message)
            })?;
            let reply = self.handler.handle(&from, command).await?;
            Ok(Reply(Box::new(reply)))
        })
    }
}
