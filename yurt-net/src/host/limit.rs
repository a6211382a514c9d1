//! How often somebody else's doing is undone: never so often that it is a fight. Pure.

/// Repairs that are made without a pause.
pub const REPAIRS: usize = 3;
/// The milliseconds in which so many repairs are made; and how long nobody must have touched the thing before it is
/// repaired again.
pub const MINUTE: u64 = 60_000;

/// At most [`REPAIRS`] in any [`MINUTE`]; one more that is asked for stops them until a minute is quiet.
#[derive(Clone, Debug, Default)]
pub struct Limit {
    /// When the last ones were, oldest first.
    recent: Vec<u64>,
    /// Since when it is quiet, once it has stopped them.
    quiet_since: Option<u64>,
}

impl Limit {
    /// Somebody else has changed the thing.
    pub fn stir(&mut self, now: u64) {
        if let Some(since) = &mut self.quiet_since {
            *since = now;
        }
    }

    /// Whether it stops repairs.
    pub fn has_stopped(&self) -> bool {
        self.quiet_since.is_some()
    }

    /// Whether nothing of it matters any more.
    pub fn is_idle(&self, now: u64) -> bool {
        let mut recent = self.recent.iter();
        !self.has_stopped() && recent.all(|&at| now.saturating_sub(at) >= MINUTE)
    }

    /// When it is over, if nobody touches the thing.
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
