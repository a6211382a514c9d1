//! Work on the kernel that takes it a while, in a thread of its own: one piece at a time, and of those that wait the
//! last one.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

type Task<S, O, R> = dyn Fn(Option<S>, O) -> (Option<S>, R) + Send + Sync;

/// Has orders `O` carried out, each of which comes to a result `R`, with a state `S` that they hand on.
pub(super) struct Worker<S, O, R> {
    task: Arc<Task<S, O, R>>,
    /// `None` before the first order, after one that has lost it, and while the thread has it.
    state: Option<S>,
    running: Option<JoinHandle<(Option<S>, R)>>,
    next: Option<O>,
}

impl<S, O, R> Worker<S, O, R>
where
    S: Send + 'static,
    O: Send + 'static,
    R: Send + 'static,
{
    /// Nothing is done before the first order.
    pub(super) fn new(
        task: impl Fn(Option<S>, O) -> (Option<S>, R) + Send + Sync + 'static,
    ) -> Self {
        Self {
            task: Arc::new(task),
            state: None,
            running: None,
            next: None,
        }
    }

    /// Has this order carried out after the present one, and instead of one that waits.
    pub(super) fn order(&mut self, order: O) {
        self.next = Some(order);
        self.start();
    }

    /// Nothing is being done.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Waits for a result. Cancel safe.
    pub(super) async fn done(&mut self) -> Result<R, JoinError> {
        let done = match &mut self.running {
            Some(running) => running.await,
            None => std::future::pending().await,
        };
        self.running = None;
        let result = done.map(|(state, result)| {
            self.state = state;
            result
        });
        self.start();
        result
    }

    fn start(&mut self) {
        if self.running.is_none()
            && let Some(order) = self.next.take()
        {
            let (task, state) = (self.task.clone(), self.state.take());
            self.running = Some(spawn_blocking(move || task(state, order)));
        }
    }
}
