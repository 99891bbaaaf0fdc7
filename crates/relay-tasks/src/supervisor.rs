//! [`Supervisor`]: the owner of all tasks of a process.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::group::TaskGroup;
use crate::kind::{TaskFailure, TaskKind, TaskName, TaskStats};

/// The owner of the tasks of a process. Clones are handles to the same owner.
///
/// A component takes its tasks from a [group](Supervisor::group). The program asks the supervisor if one of them is missing.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    kinds: Arc<RwLock<BTreeMap<TaskName, Arc<TaskKind>>>>,
}

impl Supervisor {
    /// Makes a group for the tasks of one component.
    pub fn group(&self) -> TaskGroup {
        TaskGroup::new(self.clone())
    }

    /// Returns the tasks that are to run and do not, in the order of their names.
    pub fn failures(&self) -> Vec<TaskFailure> {
        self.kinds.read().values().filter_map(|kind| kind.failure()).collect()
    }

    /// Returns the numbers of each kind of task that was started so far, by their names.
    pub fn stats(&self) -> BTreeMap<TaskName, TaskStats> {
        self.kinds.read().iter().map(|(name, kind)| (*name, kind.stats())).collect()
    }

    /// Ends one task of this name by a panic: one that runs, or the next that starts. A thread panics at its next
    /// [`Pulse::check`](crate::Pulse::check).
    #[cfg(feature = "testing")]
    pub fn kill(&self, name: TaskName) {
        self.kind(name).kill();
    }

    pub(crate) fn kind(&self, name: TaskName) -> Arc<TaskKind> {
        if let Some(kind) = self.kinds.read().get(&name) {
            return Arc::clone(kind);
        }
        Arc::clone(self.kinds.write().entry(name).or_insert_with(|| Arc::new(TaskKind::new(name))))
    }
}
