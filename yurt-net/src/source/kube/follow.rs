//! How one resource is followed: LIST once, WATCH from there, and what to do when something fails.
//!
//! Pure: outcomes go in, the next request and the wait before it come out. It is made for a YurtHub without its cloud:
//! a resourceVersion may go backwards, a watch may be silent for an hour and then end, a list may come from last week's
//! files. So a version is opaque, the end of a watch is no error, and any doubt ends in a LIST.
//!
//! | outcome | next |
//! |---|---|
//! | list | watch from its version |
//! | list held back | watch for [`CONFIRM_AFTER`], then list again; sooner if the watch ends sooner |
//! | watch ended, or silent | watch from the last version |
//! | 410, 504, or an answer that makes no sense; an apiserver whose versions went back | list: of an apiserver the latest, for a replica that lags would move the table back |
//! | 429, 5xx, a connection that broke, during a watch | the same watch, later; after [`WATCHES_IN_DOUBT`] of them, list |
//! | no connection | the same; who dials also waits |
//! | anything during a list | list, later |
//! | 404 | the next API version; after the last, list, after 1 s, doubling to a minute |
//! | 401, 403 | the same, after 1 s, doubling to five minutes: an apiserver that has just started refuses everything for a moment |
//! | the server was away, and is back | all that is waited for, at once |
#![forbid(unsafe_code)]

use std::time::Duration;

/// A list that was held back is asked for again after this long.
pub(super) const CONFIRM_AFTER: Duration = Duration::from_secs(10);
/// After so many failed watches in a row the version itself is doubted.
const WATCHES_IN_DOUBT: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// For what this node may not read, or this cluster does not have: both may change at any moment.
const FIRST_WAIT_FOR_RIGHTS: Duration = Duration::from_secs(1);
const LONGEST_WAIT_FOR_RIGHTS: Duration = Duration::from_secs(300);
const LONGEST_WAIT_FOR_RESOURCE: Duration = Duration::from_secs(60);
/// A watch that lived this long did not fail, however it ended.
const WATCH_WORKED: Duration = Duration::from_secs(5);

/// What to request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// All objects.
    List {
        /// All objects as they are now, not as some cache has them: what is known already is newer than a cache may be.
        is_latest: bool,
    },
    /// The changes from this version on; for no longer than `limit`, if there is one.
    Watch {
        version: String,
        limit: Option<Duration>,
    },
}

impl Request {
    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List { .. })
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection.
    NoConnection,
    /// The connection broke.
    Transport,
    /// Nothing came for too long.
    Silence,
    /// The answer makes no sense.
    Garbage,
    /// The version is too old (410), or of a past that an apiserver has lost.
    Expired,
    /// An HTTP status, with Retry-After where it said so.
    Status(u16, Option<Duration>),
}

impl Failure {
    /// There is no such resource.
    pub(super) fn is_absent(self) -> bool {
        matches!(self, Self::Status(404, _))
    }

    /// It tells about the server or the way there, and nothing about the resource.
    pub(super) fn is_of_server(self) -> bool {
        matches!(
            self,
            Self::NoConnection | Self::Transport | Self::Silence | Self::Status(500.., _)
        )
    }
}

/// The state of one resource.
#[derive(Debug)]
pub(super) struct Follower {
    next: Request,
    failures: u32,
    /// Answers in a row that the resource does not exist, or that this node may not read it.
    refusals: u32,
    /// Answers come from a cache, which keeps one shape of lists.
    is_cache: bool,
    /// Something is known already, here or elsewhere: nothing older is wanted.
    has_version: bool,
    /// Which of the resource's API versions to request.
    api_version: usize,
    api_versions: usize,
    is_required: bool,
}

impl Follower {
    /// Starts with a list, or where an earlier agent's watch was.
    pub(super) fn new(
        version: Option<String>,
        api_versions: usize,
        is_required: bool,
        is_cache: bool,
    ) -> Self {
        let has_version = version.is_some();
        let next = match version {
            Some(version) => Request::Watch {
                version,
                limit: None,
            },
            None => Request::List { is_latest: false },
        };
        Self {
            next,
            failures: 0,
            refusals: 0,
            is_cache,
            has_version,
            api_version: 0,
            api_versions,
            is_required,
        }
    }

    /// Something is known already, though not from this source: nothing older is wanted.
    pub(super) fn superseding(mut self) -> Self {
        self.has_version = true;
        if self.next.is_list() {
            self.next = self.again();
        }
        self
    }

    pub(super) fn next(&self) -> &Request {
        &self.next
    }

    /// Answers come from a cache.
    pub(super) fn is_cache(&self) -> bool {
        self.is_cache
    }

    /// Index of the API version to ask for.
    pub(super) fn api_version(&self) -> usize {
        self.api_version
    }

    /// A whole list has arrived, and is used or held back.
    ///
    /// Failures still count: a list whose version cannot be watched must not be repeated at full speed.
    pub(super) fn listed(&mut self, version: String, is_held: bool) {
        self.refusals = 0;
        self.has_version |= !version.is_empty();
        self.next = if version.is_empty() {
            // There is no version to watch from: a cache that knows none is asked again.
            self.again()
        } else {
            Request::Watch {
                version,
                limit: is_held.then_some(CONFIRM_AFTER),
            }
        };
    }

    /// The wait after a list. A watch follows at once, another list does not.
    pub(super) fn goes_on(&mut self) -> Duration {
        match self.next.is_list() {
            true => self.back_off(),
            false => Duration::ZERO,
        }
    }

    /// An event or a bookmark has arrived.
    pub(super) fn advanced(&mut self, to: String) {
        (self.failures, self.refusals) = (0, 0);
        if let Request::Watch { version, .. } = &mut self.next
            && !to.is_empty()
        {
            *version = to;
        }
    }

    /// The watch has ended without an error after `lived`. Returns the wait before the next request.
    pub(super) fn ended(&mut self, lived: Duration) -> Duration {
        if let Request::Watch {
            limit: Some(limit), ..
        } = self.next
        {
            self.next = self.again();
            if lived < limit.mul_f64(0.9) {
                // The cause of the wait may be gone. If it is not, the same request at once would confirm nothing.
                return self.back_off();
            }
            return Duration::ZERO;
        }
        if lived >= WATCH_WORKED {
            (self.failures, self.refusals) = (0, 0);
            return Duration::ZERO;
        }
        // YurtHub ends watches at once while its cache is being built.
        self.back_off()
    }

    /// The request has failed. Returns the wait before the next one.
    pub(super) fn failed(&mut self, failure: Failure) -> Duration {
        let is_watch = matches!(self.next, Request::Watch { .. });
        if !matches!(failure, Failure::Status(401 | 403 | 404, _)) {
            // Another server, or another moment: what follows is no longer the same refusal.
            self.refusals = 0;
        }
        match failure {
            Failure::Expired => {
                self.next = self.again();
                // The first list comes at once: an expired version is how a normal relist begins.
                match self.failures {
                    0 => {
                        self.failures = 1;
                        Duration::ZERO
                    }
                    _ => self.back_off(),
                }
            }
            // A watch from a future version times out like that.
            Failure::Status(504, _) | Failure::Garbage | Failure::Status(400, _) => {
                self.next = self.again();
                self.back_off()
            }
            Failure::Silence if is_watch => self.ended(WATCH_WORKED),
            Failure::Status(404, _) => {
                self.next = self.again();
                self.api_version = (self.api_version + 1) % self.api_versions;
                match (self.api_version, self.is_required) {
                    (0, false) => self.wait_for(LONGEST_WAIT_FOR_RESOURCE),
                    (0, true) => self.back_off(),
                    _ => Duration::ZERO,
                }
            }
            Failure::Status(401 | 403, _) => self.wait_for(LONGEST_WAIT_FOR_RIGHTS),
            Failure::NoConnection => Duration::ZERO,
            Failure::Status(_, retry_after) => {
                let wait = self.back_off();
                self.doubt();
                wait.max(retry_after.unwrap_or_default().min(LONGEST_WAIT))
            }
            Failure::Transport | Failure::Silence => {
                let wait = self.back_off();
                self.doubt();
                wait
            }
        }
    }

    /// The server was away and is back, or the network has changed: earlier refusals say nothing any more.
    pub(super) fn reconnected(&mut self) {
        (self.failures, self.refusals) = (0, 0);
    }

    fn doubt(&mut self) {
        if self.failures > WATCHES_IN_DOUBT {
            self.next = self.again();
        }
    }

    /// A list, in place of what was known.
    fn again(&self) -> Request {
        Request::List {
            is_latest: self.has_version && !self.is_cache,
        }
    }

    fn wait_for(&mut self, longest: Duration) -> Duration {
        let wait = FIRST_WAIT_FOR_RIGHTS * 2u32.saturating_pow(self.refusals.min(10));
        self.refusals = self.refusals.saturating_add(1);
        wait.min(longest)
    }

    /// Doubles with each failure in a row.
    fn back_off(&mut self) -> Duration {
        let wait = FIRST_WAIT * 2u32.saturating_pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        wait.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watching(version: &str) -> Follower {
        Follower::new(Some(version.to_owned()), 1, true, false)
    }

    fn watched(follower: &Follower) -> Option<&str> {
        match follower.next() {
            Request::Watch { version, .. } => Some(version),
            Request::List { .. } => None,
        }
    }

    #[test]
    fn a_watch_goes_on_from_the_last_version_even_if_that_went_backwards() {
        let mut follower = Follower::new(None, 1, true, false);
        assert_eq!(*follower.next(), Request::List { is_latest: false });
        follower.listed("100".to_owned(), false);
        follower.advanced("101".to_owned());
        assert_eq!(follower.ended(Duration::from_secs(300)), Duration::ZERO);
        assert_eq!(watched(&follower), Some("101"));
        follower.listed("7".to_owned(), false);
        assert_eq!(watched(&follower), Some("7"));
    }

    #[test]
    fn an_expired_version_is_listed_at_once_and_only_once() {
        let mut follower = watching("1");
        assert_eq!(follower.failed(Failure::Expired), Duration::ZERO);
        assert!(follower.next().is_list());
        assert!(follower.failed(Failure::Expired) > Duration::ZERO);
    }

    #[test]
    fn lists_whose_version_is_expired_again_and_again_come_ever_more_slowly() {
        let mut follower = watching("1");
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let wait = follower.failed(Failure::Expired);
                follower.listed("2".to_owned(), false);
                wait.as_millis()
            })
            .collect();
        assert_eq!(waits, [0, 1000, 2000, 4000]);
        // An event ends it.
        follower.advanced("3".to_owned());
        assert_eq!(follower.failed(Failure::Expired), Duration::ZERO);
    }

    #[test]
    fn a_gap_of_the_hub_costs_no_list_and_a_long_one_does() {
        let mut follower = watching("5");
        for _ in 0..WATCHES_IN_DOUBT {
            follower.failed(Failure::Status(502, None));
            assert_eq!(watched(&follower), Some("5"));
        }
        follower.failed(Failure::Transport);
        assert!(follower.next().is_list());
    }

    #[test]
    fn waits_double_up_to_half_a_minute_and_respect_retry_after() {
        let mut follower = Follower::new(None, 1, true, false);
        let waits: Vec<_> = (0..9)
            .map(|_| follower.failed(Failure::Status(503, None)).as_millis())
            .collect();
        assert_eq!(
            waits,
            [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
        );
        let mut follower = Follower::new(None, 1, true, false);
        let retry_after = Some(Duration::from_secs(3));
        assert_eq!(
            follower.failed(Failure::Status(429, retry_after)),
            Duration::from_secs(3)
        );
    }

    #[test]
    fn a_resource_that_is_not_there_is_asked_for_in_each_version_and_within_a_minute() {
        let mut follower = Follower::new(None, 2, false, false);
        let missing = Failure::Status(404, None);
        let waits: Vec<_> = (0..8)
            .map(|_| {
                assert_eq!(follower.failed(missing), Duration::ZERO);
                assert_eq!(follower.api_version(), 1);
                let wait = follower.failed(missing).as_secs();
                assert_eq!(follower.api_version(), 0);
                wait
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_refusal_is_of_the_moment_and_loses_nothing_that_was_known() {
        for code in [401, 403] {
            for is_required in [true, false] {
                let mut follower = Follower::new(Some("7".to_owned()), 1, is_required, false);
                let refused = Failure::Status(code, None);
                let waits: Vec<_> = (0..11)
                    .map(|_| follower.failed(refused).as_secs())
                    .collect();
                assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
                assert_eq!(watched(&follower), Some("7"));
                follower.reconnected();
                assert_eq!(follower.failed(refused), FIRST_WAIT_FOR_RIGHTS);
            }
        }
    }

    #[test]
    fn refusals_count_in_a_row_and_another_failure_between_them_ends_it() {
        for between in [
            Failure::Status(503, None),
            Failure::Transport,
            Failure::Expired,
        ] {
            let mut follower = watching("7");
            for _ in 0..20 {
                assert_eq!(
                    follower.failed(Failure::Status(403, None)),
                    FIRST_WAIT_FOR_RIGHTS
                );
                follower.failed(between);
            }
        }
    }

    #[test]
    fn what_is_listed_again_is_the_latest_except_of_a_cache() {
        for (is_cache, is_latest) in [(false, true), (true, false)] {
            for failure in [
                Failure::Expired,
                Failure::Garbage,
                Failure::Status(504, None),
            ] {
                let mut follower = Follower::new(None, 1, true, is_cache);
                assert_eq!(*follower.next(), Request::List { is_latest: false });
                follower.listed("7".to_owned(), false);
                follower.failed(failure);
                assert_eq!(*follower.next(), Request::List { is_latest });
            }
        }
    }

    #[test]
    fn what_takes_the_place_of_another_sources_word_is_the_latest_except_of_a_cache() {
        for (is_cache, is_latest) in [(false, true), (true, false)] {
            let follower = Follower::new(None, 1, true, is_cache).superseding();
            assert_eq!(*follower.next(), Request::List { is_latest });
        }
    }

    #[test]
    fn a_server_that_cannot_be_reached_casts_no_doubt_on_a_version() {
        let mut follower = watching("5");
        for _ in 0..100 {
            assert_eq!(follower.failed(Failure::NoConnection), Duration::ZERO);
        }
        assert_eq!(watched(&follower), Some("5"));
    }

    #[test]
    fn a_list_that_is_held_back_is_asked_for_again_after_ten_seconds() {
        let mut follower = Follower::new(None, 1, true, false);
        follower.listed("3".to_owned(), true);
        assert_eq!(
            *follower.next(),
            Request::Watch {
                version: "3".to_owned(),
                limit: Some(CONFIRM_AFTER)
            }
        );
        assert_eq!(follower.ended(CONFIRM_AFTER), Duration::ZERO);
        assert!(follower.next().is_list());
    }

    #[test]
    fn lists_that_are_held_back_come_ever_more_slowly_while_their_watches_end_at_once() {
        let mut follower = Follower::new(None, 1, true, false);
        let waits = [0, 0, 0].map(|_| {
            follower.listed("3".to_owned(), true);
            let wait = follower.ended(Duration::from_secs(1));
            assert!(follower.next().is_list());
            wait.as_millis()
        });
        assert_eq!(waits, [500, 1000, 2000]);
    }

    #[test]
    fn a_cache_that_knows_no_version_is_listed_ever_more_slowly() {
        let mut follower = Follower::new(None, 1, true, true);
        let waits = [0, 0, 0].map(|_| {
            follower.listed(String::new(), false);
            follower.goes_on().as_millis()
        });
        assert_eq!(waits, [500, 1000, 2000]);
        follower.listed("7".to_owned(), false);
        assert_eq!(follower.goes_on(), Duration::ZERO);
    }

    #[test]
    fn a_silent_watch_is_renewed_without_a_list() {
        let mut follower = watching("8");
        assert_eq!(follower.failed(Failure::Silence), Duration::ZERO);
        assert_eq!(watched(&follower), Some("8"));
    }

    #[test]
    fn a_watch_that_ends_at_once_is_not_repeated_at_once() {
        let mut follower = watching("8");
        let first = follower.ended(Duration::from_millis(1));
        let second = follower.ended(Duration::from_millis(1));
        assert!(Duration::ZERO < first && first < second);
    }
}
