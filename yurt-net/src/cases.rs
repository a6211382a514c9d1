//! How many cases a property test tries, where the default is not the right number.

use proptest::prelude::ProptestConfig;

/// So many, or as many as `PROPTEST_CASES` says if those are fewer: an emulated processor has less time for each. A
/// number that is written into a configuration would win over the variable.
pub(crate) fn cases(most: u32) -> ProptestConfig {
    let given = std::env::var("PROPTEST_CASES").ok();
    let given = given.and_then(|given| given.parse().ok());
    ProptestConfig {
        cases: given.map_or(most, |given: u32| given.min(most)),
        ..ProptestConfig::default()
    }
}
