//! Work on a disk that may not answer: a network file system whose server is away, a dying flash.
//!
//! A thread that waits for such a disk cannot be ended. So each question has a thread of its own, and its answer is
//! waited for with a limit. While a question is open it is not asked again, so a disk that never answers costs a few
//! threads, and the loop one such wait. What is done with an answer takes time, too, and that is no silence: [`AtDisk`]
//! tells the two apart.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// How long an answer is waited for: ten times as long as a disk under load takes.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What messages say of a disk that has not answered by then.
pub const SILENCE: &str = "it does not answer";

/// One kind of work on a disk, with one job at a time.
#[derive(Debug)]
pub struct Errand<T> {
    running: Option<Running<T>>,
}

#[derive(Debug)]
struct Running<T> {
    work: JoinHandle<T>,
    /// When the job began, by the wall clock: no thread waits for one that a test has stopped.
    since: Instant,
    /// Whether [`Errand::news`] has said that the job takes longer.
    is_told: bool,
}

impl<T> Default for Errand<T> {
    fn default() -> Self {
        Self { running: None }
    }
}

impl<T: Send + 'static> Errand<T> {
    /// Starts the job and waits a moment for it. `None`: it takes longer, or an earlier job still runs; [`Self::late`]
    /// tells when that has ended. If this future is dropped, ask again.
    pub async fn run(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.is_outstanding() {
            return None;
        }
        self.running = None;
        self.begin(work);
        self.answer(PATIENCE).await
    }

    /// Starts the job, unless one is running.
    pub fn begin(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        self.running.get_or_insert_with(|| Running {
            work: spawn_blocking(work),
            since: Instant::now(),
            is_told: false,
        });
    }

    /// Waits for the job, until the limit since its beginning has passed. `None`: it takes longer. Cancel safe.
    pub async fn answer(&mut self, patience: Duration) -> Option<T> {
        loop {
            let Running { work, since, .. } = self.running.as_mut()?;
            let left = patience.saturating_sub(since.elapsed());
            let answer = timeout(left, work).await;
            match answer {
                Ok(answer) => {
                    self.running = None;
                    // A panic is logged, and is no answer.
                    return answer.ok();
                }
                Err(_elapsed) if since.elapsed() >= patience => return None,
                Err(_elapsed) => {}
            }
        }
    }

    /// Like [`Self::answer`], but says only once that the job takes longer, and then waits for it without a limit.
    /// `None` without a running job: the job was lost with its thread. Cancel safe.
    pub async fn news(&mut self, patience: Duration) -> Option<T> {
        self.news_if(patience, || true).await
    }

    /// The same, but that the job takes longer is no news while it is not silent.
    pub async fn news_if(
        &mut self,
        patience: Duration,
        mut is_silent: impl FnMut() -> bool,
    ) -> Option<T> {
        let mut limit = patience;
        loop {
            if self.running.as_ref().is_some_and(|running| running.is_told) {
                return self.late().await;
            }
            let answer = self.answer(limit).await;
            match &mut self.running {
                Some(running) if !is_silent() => limit = running.since.elapsed() + patience,
                Some(running) => {
                    running.is_told = true;
                    return None;
                }
                None => return answer,
            }
        }
    }

    /// No job is running, and no answer waits to be taken.
    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// A job was started and has not ended.
    pub fn is_outstanding(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| !running.work.is_finished())
    }

    /// Lets the job end, for tests in which the clock stands still or what the job reads is about to change.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        while self.is_outstanding() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits without a limit for a job that took too long. Cancel safe.
    pub async fn late(&mut self) -> Option<T> {
        let result = match &mut self.running {
            Some(running) => (&mut running.work).await,
            None => std::future::pending().await,
        };
        self.running = None;
        result.ok()
    }
}

/// Since when work waits for the disk, for those who look on.
#[derive(Clone, Debug, Default)]
pub struct AtDisk(Arc<Mutex<Option<Instant>>>);

impl AtDisk {
    /// Does something for which the disk may keep it waiting.
    pub fn during<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.set(Some(Instant::now()));
        let answer = ask();
        self.set(None);
        answer
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// It has waited for so long.
    pub fn is_silent(&self, patience: Duration) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= patience)
    }
}

/// Does one job. `None`: it takes longer than the limit, and may still be done.
pub async fn once<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    Errand::default().run(work).await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::future::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_asked_once_and_its_answer_is_taken_when_it_comes() {
        let mut errand = Errand::default();
        assert_eq!(errand.run(|| 1).await, Some(1));
        let (answer, disk) = mpsc::channel();
        assert_eq!(errand.run(move || disk.recv().unwrap()).await, None);
        assert!(errand.is_outstanding());
        // It would panic if it was begun.
        assert_eq!(errand.run(|| unreachable!()).await, None);
        answer.send(2).unwrap();
        assert_eq!(errand.late().await, Some(2));
        assert_eq!(errand.run(|| 3).await, Some(3));
    }

    #[tokio::test]
    async fn that_a_disk_does_not_answer_is_told_once_and_then_its_answer() {
        let mut errand = Errand::default();
        let (answer, disk) = mpsc::channel();
        errand.begin(move || disk.recv().unwrap());
        assert_eq!(errand.news(Duration::ZERO).await, None);
        assert!(!errand.is_idle());
        let waits = errand.news(Duration::ZERO).now_or_never();
        assert_eq!(waits, None, "it waits");
        answer.send(1).unwrap();
        assert_eq!(errand.news(Duration::ZERO).await, Some(1));
        assert!(errand.is_idle());
        // The next one is another one.
        let (_answer, disk) = mpsc::channel::<u8>();
        errand.begin(move || disk.recv().map_or(2, Into::into));
        assert_eq!(errand.news(Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn work_that_goes_on_is_waited_for_and_told_only_when_the_disk_is_what_it_waits_for() {
        let (mut errand, disk) = (Errand::default(), AtDisk::default());
        let (go_on, told) = mpsc::channel::<()>();
        let at_disk = disk.clone();
        errand.begin(move || {
            // It parses what it has read.
            told.recv().unwrap();
            at_disk.during(|| told.recv().unwrap());
            1
        });
        let mut looks = 0;
        let is_silent = || {
            looks += 1;
            if looks == 3 {
                go_on.send(()).unwrap();
            }
            disk.is_silent(Duration::ZERO)
        };
        assert_eq!(
            errand.news_if(Duration::from_millis(1), is_silent).await,
            None
        );
        assert!(looks >= 3, "{looks}");
        go_on.send(()).unwrap();
        assert_eq!(errand.late().await, Some(1));
        assert!(!disk.is_silent(Duration::ZERO));
    }

    #[tokio::test]
    async fn an_answer_that_nobody_has_taken_is_none_to_the_next_question() {
        let mut errand = Errand::default();
        let (answer, disk) = mpsc::channel();
        assert_eq!(errand.run(move || disk.recv().unwrap()).await, None);
        answer.send(1).unwrap();
        while errand.is_outstanding() {
            tokio::task::yield_now().await;
        }
        assert_eq!(errand.run(|| 2).await, Some(2));
    }
}
