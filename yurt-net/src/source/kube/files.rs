//! The files that say how an apiserver is reached, read beside the loop: their disk may not answer.
//!
//! Kubeconfigs, certificates and tokens are read for each connection, and tokens for each request. A thread does each
//! read. While one read of a kind gets no answer, no other of that kind begins, so a disk that never answers costs
//! three threads, and each attempt its patience.

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::host::disk::errand::{Errand, PATIENCE};

/// Questions of one kind, one at a time.
pub(super) struct Questions<T>(Mutex<Errand<T>>);

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Send + 'static> Questions<T> {
    /// Runs this after the earlier questions. `None`: the disk does not answer. A caller that drops this future asks
    /// again.
    pub(super) async fn ask(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut errand = self.0.lock().await;
        if errand.is_outstanding() {
            // The result of a question whose asker has gone.
            let _nobodys = timeout(PATIENCE, errand.late()).await;
        }
        errand.run(work).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_asked_one_thing_at_a_time_and_by_whoever_comes_when_it_does()
     {
        let questions = Questions::default();
        let (answer, disk) = mpsc::channel();
        let asking = questions.ask(move || disk.recv().unwrap());
        // It is given up at once, as a connection is when the network changes.
        assert_eq!(timeout(Duration::ZERO, asking).await.ok(), None);
        let (one, two) = futures_util::join!(questions.ask(|| 1), questions.ask(|| 2));
        assert_eq!((one, two), (None, None));
        answer.send(0).unwrap();
        assert_eq!(questions.ask(|| 3).await, Some(3));
    }
}
