//! The map of who was refused something, so that a host is told only so often.

/// So many refusals a second are told to one host, as the kernel has it for errors of its own.
const REFUSALS_PER_SECOND: u32 = 100;
/// Entries of `yurt_refused`: hosts that are refused something at the same time. One that is pushed out is told more,
/// not less.
pub const REFUSED_HOSTS: u32 = 1024;

/// Value of `yurt_refused`, by the address of a host, IPv4-mapped for IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refused {
    /// A second of `CLOCK_MONOTONIC`.
    pub second: u32,
    /// How much was refused in it.
    pub count: u32,
}

impl Refused {
    /// Counts one more; whether it is to be told.
    #[inline(always)]
    pub fn tell(&mut self, second: u32) -> bool {
        if self.second != second {
            *self = Self { second, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= REFUSALS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_of_a_hundred_refusals_in_each_second_however_many_there_are() {
        let mut refused = Refused::default();
        for second in [0, 7, 8] {
            let told = (0..1000).filter(|_| refused.tell(second)).count();
            assert_eq!(told, 100, "{second}");
        }
    }
}
