//! Session affinity: a client's new flows go where its last one went, for as long as the Service says.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would take room on a small stack"
)]

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use yurt_ebpf::abi::{
    Affinity, Affinity4, Affinity6, AffinityKey, Backend4, Backend6, Counter, PublishWord,
};
use yurt_ebpf::select::{Tables as _, contains4, contains6, random_slot};

use super::sock::{Sock, count};
use crate::maps::service::{AFF4, AFF6, Maps};

impl Sock<'_> {
    /// The backend of a new flow: any, unless there is affinity. False when there is none to be had.
    #[inline(always)]
    pub(super) fn new_backend4(
        &self,
        word: PublishWord,
        affinity: Affinity,
        backend: &mut Backend4,
    ) -> bool {
        if !affinity.is_none() {
            return self.sticky4(word, affinity, backend);
        }
        self.any_backend4(word, backend)
    }

    #[inline(always)]
    fn any_backend4(&self, word: PublishWord, backend: &mut Backend4) -> bool {
        let any = Maps.backend4(random_slot(self, word));
        if let Some(any) = any {
            *backend = any;
            count(Counter::Forward);
        }
        any.is_some()
    }

    /// See `new_backend4`.
    #[inline(always)]
    pub(super) fn new_backend6(
        &self,
        word: PublishWord,
        affinity: Affinity,
        backend: &mut Backend6,
    ) -> bool {
        if !affinity.is_none() {
            return self.sticky6(word, affinity, backend);
        }
        self.any_backend6(word, backend)
    }

    #[inline(always)]
    fn any_backend6(&self, word: PublishWord, backend: &mut Backend6) -> bool {
        let any = Maps.backend6(random_slot(self, word));
        if let Some(any) = any {
            *backend = any;
            count(Counter::Forward);
        }
        any.is_some()
    }

    /// The backend that the client had, if it is in the set still, else any. (A subprogram: its keys and values have no
    /// room on the caller's stack.)
    #[inline(never)]
    fn sticky4(&self, word: PublishWord, affinity: Affinity, backend: &mut Backend4) -> bool {
        let (key, now) = (self.key(affinity), now_ns());
        let mut is_fresh = false;
        // SAFETY: copied at once. What is copied from an element that is reused meanwhile is looked up in the set.
        if let Some(last) = unsafe { AFF4.get(&key) } {
            *backend = last.backend;
            is_fresh = now.wrapping_sub(last.last_ns) < affinity.timeout_ns();
        }
        if is_fresh && contains4(&Maps, word, backend) {
            count(Counter::AffinityKept);
        } else if !self.any_backend4(word, backend) {
            return false;
        }
        let value = Affinity4 {
            backend: *backend,
            last_ns: now,
        };
        // A client that cannot be remembered is served all the same.
        let _ = AFF4.insert(&key, &value, 0);
        true
    }

    /// See `sticky4`.
    #[inline(never)]
    fn sticky6(&self, word: PublishWord, affinity: Affinity, backend: &mut Backend6) -> bool {
        let (key, now) = (self.key(affinity), now_ns());
        let mut is_fresh = false;
        // SAFETY: copied at once. What is copied from an element that is reused meanwhile is looked up in the set.
        if let Some(last) = unsafe { AFF6.get(&key) } {
            *backend = last.backend;
            is_fresh = now.wrapping_sub(last.last_ns) < affinity.timeout_ns();
        }
        if is_fresh && contains6(&Maps, word, backend) {
            count(Counter::AffinityKept);
        } else if !self.any_backend6(word, backend) {
            return false;
        }
        let value = Affinity6 {
            backend: *backend,
            last_ns: now,
        };
        // A client that cannot be remembered is served all the same.
        let _ = AFF6.insert(&key, &value, 0);
        true
    }

    #[inline(always)]
    fn key(&self, affinity: Affinity) -> AffinityKey {
        AffinityKey {
            netns: self.netns_cookie(),
            identity: affinity.identity(),
        }
    }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
