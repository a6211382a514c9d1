//! Limits how often the agent undoes another program's changes, so that it never fights. Pure.

/// How many repairs are made without a pause.
pub const REPAIRS: usize = 3;
/// The milliseconds in which at most this many repairs are made; also how long nobody must have touched the thing
/// before it is repaired again.
pub const MINUTE: u64 = 60_000;

/// Allows at most [`REPAIRS`] in any [`MINUTE`]. One more request stops repairs until a minute has been quiet.
#[derive(Clone, Debug, Default)]
pub struct Limit {
    /// The times of the last repairs, oldest first.
    recent: Vec<u64>,
    /// The last change by another program, once repairs are stopped.
    quiet_since: Option<u64>,
}

impl Limit {
    /// Another program has changed the thing.
    pub fn stir(&mut self, now: u64) {
        if let Some(since) = &mut self.quiet_since {
            *since = now;
        }
    }

    /// Whether repairs are stopped.
    pub fn has_stopped(&self) -> bool {
        self.quiet_since.is_some()
    }

    /// Whether everything that is remembered has expired.
    pub fn is_idle(&self, now: u64) -> bool {
        let mut recent = self.recent.iter();
        !self.has_stopped() && recent.all(|&at| now.saturating_sub(at) >= MINUTE)
    }

    /// When the stop ends, if nobody touches the thing.
    pub fn until(&self) -> Option<u64> {
        self.quiet_since.map(|since| since.saturating_add(MINUTE))
    }

    /// Ends the stop when its time has come.
    pub fn pass(&mut self, now: u64) {
        if self.until().is_some_and(|until| until <= now) {
            self.quiet_since = None;
        }
    }

    /// Asks for a repair; one that is granted is counted.
    pub fn grant(&mut self, now: u64) -> bool {
        self.pass(now);
        if self.has_stopped() {
            return false;
        }
        self.recent.retain(|&at| now.saturating_sub(at) < MINUTE);
        if self.recent.len() >= REPAIRS {
            self.quiet_since = Some(now);
            return false;
        }
        self.recent.push(now);
        true
    }
}
