//! Work on the kernel that takes a while, in a thread of its own: one order at a time, and of the waiting orders only
//! the last one.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

type Task<S, O, R> = dyn Fn(Option<S>, O) -> (Option<S>, R) + Send + Sync;

/// Carries out orders `O` one after the other, each with a result `R`, and hands a state `S` from one to the next.
pub(super) struct Worker<S, O, R> {
    task: Arc<Task<S, O, R>>,
    /// `None` before the first order, while the thread has it, and after an order that has lost it.
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
    /// Does nothing before the first order.
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

    /// Carries out this order after the present one, instead of a waiting one.
    pub(super) fn order(&mut self, order: O) {
        self.next = Some(order);
        self.start();
    }

    /// No order is being carried out.
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
