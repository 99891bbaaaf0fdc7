//! Tasks that panic, and what their owner makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relay_tasks::{OnPanic, Supervisor, TaskName};

const TASK: TaskName = TaskName::new("test.task");

fn panicked(supervisor: &Supervisor) -> u64 {
    supervisor.stats().get(&TASK).map_or(0, |stats| stats.panicked)
}

fn running(supervisor: &Supervisor) -> usize {
    supervisor.stats().get(&TASK).map_or(0, |stats| stats.running)
}

/// Sets a flag when it is dropped.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_gives_back_what_it_holds_and_is_counted() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.group();
    let dropped = Arc::new(AtomicUsize::new(0));
    let held = Held(Arc::clone(&dropped));
    let task = tasks.spawn(TASK, async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    assert_eq!(running(&supervisor), 1);
    supervisor.kill(TASK);
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert_eq!((panicked(&supervisor), running(&supervisor)), (1, 0));
    // Its end is handled, so nothing is missing.
    assert_eq!(supervisor.failures(), []);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_to_run_is_started_again_with_its_state() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.group();
    let (rounds, mut seen) = tokio::sync::watch::channel(0);
    tasks.keep_running(TASK, (0, rounds), |(round, rounds)| {
        Box::pin(async move {
            *round += 1;
            rounds.send_replace(*round);
            std::future::pending::<()>().await;
        })
    });
    seen.wait_for(|round| *round == 1).await.unwrap();
    supervisor.kill(TASK);
    while supervisor.failures().is_empty() {
        tokio::task::yield_now().await;
    }
    let failure = supervisor.failures().remove(0);
    assert!(!failure.is_final);
    assert_eq!(
        failure.to_string(),
        "the task test.task panicked (a test ended the task test.task); it is started again in a moment"
    );
    seen.wait_for(|round| *round == 2).await.unwrap();
    assert_eq!(supervisor.failures(), []);
}

#[tokio::test(start_paused = true)]
async fn a_closed_group_starts_nothing_again() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.group();
    tasks.keep_running(TASK, (), |()| Box::pin(std::future::pending()));
    tokio::task::yield_now().await;
    tasks.close();
    supervisor.kill(TASK);
    tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.unwrap();
    assert_eq!((panicked(&supervisor), running(&supervisor)), (1, 0));
    assert_eq!(supervisor.failures(), []);
}

#[tokio::test(start_paused = true)]
async fn one_task_of_a_name_ends_alone() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.group();
    let both: Vec<_> = (0..2).map(|_| tasks.spawn(TASK, std::future::pending::<()>())).collect();
    tokio::task::yield_now().await;
    supervisor.kill(TASK);
    while panicked(&supervisor) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((panicked(&supervisor), running(&supervisor)), (1, 1));
    assert_eq!(both.iter().filter(|task| task.is_finished()).count(), 1);
}

#[tokio::test]
async fn a_blocking_call_that_panics_is_an_error_of_its_caller() {
    let supervisor = Supervisor::default();
    let tasks = supervisor.group();
    supervisor.kill(TASK);
    assert!(tasks.blocking(TASK, || 1).await.unwrap_err().is_panic());
    assert_eq!(tasks.blocking(TASK, || 1).await.unwrap(), 1);
    assert_eq!(panicked(&supervisor), 1);
}

#[test]
fn a_thread_that_cannot_be_started_again_stays_a_failure() {
    let supervisor = Supervisor::default();
    supervisor.kill(TASK);
    let thread = supervisor.group().thread(TASK, "test".to_owned(), OnPanic::Fail, relay_tasks::Pulse::check);
    thread.unwrap().join().unwrap_err();
    let failure = supervisor.failures().remove(0);
    assert!(failure.is_final);
    assert!(failure.to_string().ends_with("; restart the server"), "{failure}");
}

#[test]
fn a_thread_is_started_again_with_its_state() {
    let supervisor = Supervisor::default();
    supervisor.kill(TASK);
    let mut calls = 0;
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = supervisor.group().thread(TASK, "test".to_owned(), OnPanic::Restart, move |pulse| {
        calls += 1;
        pulse.check();
        sender.send(calls).unwrap();
    });
    assert_eq!(receiver.recv().unwrap(), 2);
    thread.unwrap().join().unwrap();
    assert_eq!((panicked(&supervisor), supervisor.failures()), (1, vec![]));
}
